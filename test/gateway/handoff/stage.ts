// Handoffs of a gateway with two sites that answer only what a test names; all else hangs. Not a test itself.
import type { GatewayEvent } from '../../../gateway/handoff/events.ts'
import { HandoffSet } from '../../../gateway/handoff/handoff.ts'
import { homeOf } from '../../../gateway/handoff/home.ts'
import { Migrations } from '../../../gateway/handoff/migrations.ts'
import { Prestages } from '../../../gateway/handoff/prestages.ts'
import { createSessions } from '../../../gateway/relay/sessions.ts'
import { createSites, type NodeLink } from '../../../gateway/sites/sites.ts'
import { createRecords, type Records } from '../../../gateway/store/records.ts'
import { openStore } from '../../../ops/store.ts'
import { WATCH_EVERY_MS } from '../../../ops/watchdog.ts'
import { silentLog } from '../../../wire/log.ts'
import { tempFolder } from '../../support/temp-folder.ts'
import { vm } from '../fixture.ts'

const clock = { now: () => 1_000_000 }
const host = { accelerators: ['tcg' as const], memoryFreeBytes: 1e9, diskFreeBytes: 1e9, vcpus: 2 }
/** Answers to the questions about room. */
const ANSWERS: Record<string, object> = { 'prestage.needs': { needs: 'c2VhbGVk' }, 'prestage.hold': { memoryBytes: 1 } }

/** A has the VM vm-1. `saves`: in place of the disk, for records of migrations. */
export async function stage(answers: string[], { saves }: { saves?: Records['saveMigration'] } = {}) {
  const folder = await tempFolder()
  const store = await openStore(folder.path)
  const asked: string[] = []
  const stuck: string[] = []
  const events: GatewayEvent[] = []
  const sites = createSites([], clock)
  for (const site of ['a', 'b']) {
    const link = {
      site,
      peer: { hello: { purpose: 'control', incarnation: 1 }, certificate: { notAfter: 1e9 }, certificateBytes: new Uint8Array(4) },
      rpc: {
        request(method: string) {
          asked.push(`${site} ${method}`)
          return answers.includes(method) ? Promise.resolve(ANSWERS[method] ?? {}) : new Promise(() => {})
        },
        close() {},
      },
      since: 0,
    } as unknown as NodeLink
    sites.attach(link)
    sites.update(link, { site, incarnation: 1, version: '1', host, vms: site === 'a' ? [vm('vm-1')] : [], migrations: [] })
  }
  const onEvent = (event: GatewayEvent) => void events.push(event)
  const onStuck = (state: string, action: string) => void stuck.push(`${state} ${action}`)
  const handoffs = new HandoffSet(onEvent)
  const homes = { of: () => 'a', find: (name: string) => homeOf(name, sites.vms(), 'a'), vms: () => sites.vms() }
  let ids = 0
  const newId = () => (++ids).toString(16).padStart(32, '0')
  const options = { handoffs, homes, sites, clock, newId, log: silentLog, onEvent, onStuck }
  const sessions = createSessions(clock)
  const records = { ...createRecords(store), ...(saves ? { saveMigration: saves } : {}) }
  const prestages = new Prestages({ ...options, pinned: () => false, onEnded: () => {} })
  const migrations = new Migrations({ ...options, sessions, records, room: prestages })
  let atMs = 0
  const pass = (ms: number) => {
    for (const endMs = atMs + ms; atMs <= endMs; atMs += WATCH_EVERY_MS) {
      migrations.watch(atMs)
      prestages.watch(atMs)
    }
  }
  return {
    ...{ handoffs, migrations, prestages, sites, sessions, asked, stuck, events, pass },
    async [Symbol.asyncDispose]() {
      prestages.close()
      await store.close()
      await folder[Symbol.asyncDispose]()
    },
  }
}
