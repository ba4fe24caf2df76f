// The gateway's status kept up to date by its events, and events as lines for people. Enters: a status, events. Leaves:
// the next status; a line for each event. Pure.
// Always holds: an event that is not known changes nothing, and has a line with its name; a status is never changed in
// place.
import type { GatewayStatus, MigrationRecord, VmView } from '../wire/admin.ts'
import type { FeedEvent } from '../wire/events.ts'

const MIGRATIONS_MAX = 50

export function applyEvent(status: GatewayStatus, event: FeedEvent): GatewayStatus {
  switch (event.event) {
    case 'site-connected':
      return withSite(status, event.site, event.vms, undefined)
    case 'site-state':
      return withSite(status, event.site, event.vms, new Set(event.gone))
    case 'site-left':
      return {
        ...status,
        sites: status.sites.map(site => (site.site === event.site ? { ...site, online: false, transport: null, since: event.at } : site)),
        vms: status.vms.map(vm => (vm.site === event.site ? { ...vm, online: false } : vm)),
      }
    case 'site-forgotten':
      return {
        ...status,
        sites: status.sites.filter(({ site }) => site !== event.site),
        vms: status.vms.filter(({ site }) => site !== event.site),
      }
    case 'vm-home':
      return {
        ...status,
        vms: status.vms.map(vm => (vm.name === event.vm ? { ...vm, isHome: event.to === null || vm.site === event.to } : vm)),
      }
    case 'migration-begun':
    case 'migration-state':
    case 'migration-ended':
      return withMigration(status, event.migration)
    case 'migration-progress': {
      const found = status.migrations.find(({ migrationId }) => migrationId === event.migrationId)
      return found ? withMigration(status, { ...found, state: event.state, progress: event.progress, updatedAt: event.at }) : status
    }
    default:
      return status
  }
}

type SiteFacts = Extract<FeedEvent, { event: 'site-state' }>['site']

/** `gone`: names that the site does not list any more; undefined: all that `vms` has not. */
function withSite(status: GatewayStatus, facts: SiteFacts, vms: VmView[], gone: Set<string> | undefined): GatewayStatus {
  const before = status.vms.filter(({ site }) => site === facts.site)
  const changed = new Map(vms.map(vm => [vm.name, vm]))
  const kept = before.filter(({ name }) => !changed.has(name) && gone !== undefined && !gone.has(name))
  const own = [...kept, ...vms.map(vm => ({ ...before.find(({ name }) => name === vm.name), ...vm }))]
  const site = { ...facts, vms: own.map(({ name }) => name) }
  const isThere = status.sites.some(one => one.site === site.site)
  return {
    ...status,
    sites: isThere ? status.sites.map(one => (one.site === site.site ? site : one)) : [...status.sites, site],
    vms: [...status.vms.filter(vm => vm.site !== site.site), ...own].sort((a, b) => order(a.name, b.name) || order(a.site, b.site)),
  }
}

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)

function withMigration(status: GatewayStatus, migration: MigrationRecord): GatewayStatus {
  const others = status.migrations.filter(({ migrationId }) => migrationId !== migration.migrationId)
  const migrations = [migration, ...others].sort((a, b) => b.createdAt - a.createdAt).slice(0, MIGRATIONS_MAX)
  return { ...status, migrations }
}

/** `2026-11-30T20:15:00Z  vm-1: migration begins, oslo -> bergen`. */
export const renderEvent = (event: FeedEvent): string => `${new Date(event.at).toISOString().slice(0, 19)}Z  ${sentence(event)}`

function sentence(event: FeedEvent): string {
  switch (event.event) {
    case 'reset':
      return event.why === 'start' ? 'the stream of events begins' : 'events are missing: reading the status again'
    case 'site-connected':
      return `site ${event.site.site}: connected${event.site.transport ? ` over ${event.site.transport}` : ''}, ${countOf(event.vms.length, 'VM')}`
    case 'site-left':
      return `site ${event.site}: disconnected`
    case 'site-forgotten':
      return `site ${event.site}: removed by an operator`
    case 'site-state': {
      const changes = [
        ...event.vms.map(({ name, state, epoch }) => `${name} ${state} (epoch ${epoch})`),
        ...event.gone.map(name => `${name} gone`),
      ]
      return `site ${event.site.site}: ${changes.join(', ') || 'its host has changed'}`
    }
    case 'vm-home':
      return `${event.vm}: belongs to ${event.to === null ? 'no site' : `site ${event.to}`}${event.from === null ? '' : `, before to ${event.from}`}`
    case 'vm-pin':
      return `${event.vm}: ${event.pinned ? 'pinned' : 'unpinned'}`
    case 'alert':
      return `ALERT ${event.kind}: ${event.message}`
    case 'policy-decision':
      return `${event.vm}: policy ${event.action === 'move' ? 'moves it' : 'prepares its move'}, ${event.from} -> ${event.to}: ${event.because}`
    case 'enrolment-request':
      return `site ${event.site}: asks for a certificate, fingerprint ${event.fingerprint} (godwit enrol approve)`
    default:
      return moveSentence(event)
  }
}

function moveSentence(event: FeedEvent): string {
  switch (event.event) {
    case 'migration-begun':
    case 'migration-state':
    case 'migration-ended': {
      const { vm, source, target, state, outcome, error, migrationId } = event.migration
      const step = event.event === 'migration-begun' ? 'begins' : event.event === 'migration-ended' ? (outcome ?? 'ended') : state
      return `${vm}: migration ${step}, ${source} -> ${target}${error ? ` (${error.code})` : ''} [${migrationId}]`
    }
    case 'migration-progress': {
      const { phase, bytesTotal = 0, bytesSent = 0 } = event.progress
      const share = bytesTotal > 0 ? ` ${Math.floor(Math.min(1, bytesSent / bytesTotal) * 100)} %` : ''
      return `${event.vm}: ${phase}${share}, ${event.source} -> ${event.target}`
    }
    case 'prestage-begun':
    case 'prestage-ended': {
      const { vm, source, target, outcome, error } = event.prestage
      return `${vm}: pre-staging ${outcome ?? 'begins'}, ${source} -> ${target}${error ? ` (${error.code})` : ''}`
    }
    default:
      return event.event
  }
}

const countOf = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`
