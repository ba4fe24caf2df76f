// Whether a VM may leave this site: the source's own rules, and the commander's signature where this node knows command
// keys.
// Enters: a move that the gateway asks for, perhaps with the signed command behind it. Leaves: nothing, or a coded
// refusal and an alert.
// Always holds: the gateway alone decides nothing about where a VM's memory goes. A signed command counts once, also
// over a restart of the node: its id is on the disk before the move begins, until its time has passed; when there is no
// room to remember, new commands are refused.
import { type AllowedKey, checkCommand, SKEW_MS } from '../crypto/command-check.ts'
import { commandTopicsOf, publicKeyOf } from '../crypto/command-keys.ts'
import type { Store } from '../ops/store.ts'
import type { Command } from '../wire/command.ts'
import type { Method, SignedCommand } from '../wire/control.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Alerts } from './alerts.ts'
import type { NodeConfig } from './config.ts'
import { fits } from './migration/accept.ts'

const REMEMBERED_MAX = 10_000
const TABLE = 'commands'

export type AskedMove = {
  /** start: its memory; prestage: what it needs of a host. */
  action: 'start' | 'prestage'
  migrationId: string
  vm: string
  epoch: number
  target: string
  method: (typeof Method.options)[number]
  /** The pause that the plan allows, ms. */
  downtimeMs?: number
  /** A VM that does not run starts at the target. */
  start?: boolean | undefined
  command?: SignedCommand | undefined
}

export type Release = {
  /** RELEASE_DENIED, COMMAND_REQUIRED, COMMAND_MISMATCH, other COMMAND_*, EPOCH_STALE, LIMIT_EXCEEDED, STORE_FAILED. */
  check(move: AskedMove): Promise<void>
}

export type ReleaseOptions = {
  config: Pick<NodeConfig, 'site' | 'release' | 'commandKeys' | 'commandTenant'>
  store: Pick<Store, 'entries' | 'put' | 'delete'>
  alerts: Alerts
  /** Unix ms. */
  now: () => number
  rememberedMax?: number
}

/** CONFIG_INVALID for a key that is none. */
export async function createRelease({ config, store, alerts, now, rememberedMax = REMEMBERED_MAX }: ReleaseOptions): Promise<Release> {
  const { site, release, commandKeys, commandTenant } = config
  const keys = new Map<string, AllowedKey>(
    Object.entries(commandKeys).map(([name, { publicKey, actions }]) => [name, { name, key: publicKeyOf(publicKey), actions }]),
  )
  const topics = commandTopicsOf(commandTenant)
  const used = await createUsedIds(store, rememberedMax, now())

  async function check(move: AskedMove): Promise<void> {
    const fitting = (release ?? []).filter(({ vms, to }) => vms.some(one => fits(one, move.vm)) && to.some(one => fits(one, move.target)))
    if (release && fitting.length === 0) throw new GodwitError('RELEASE_DENIED', `${site} does not release ${move.vm} to ${move.target}`)
    if (keys.size === 0 || fitting.some(({ unsigned }) => unsigned)) return
    if (!move.command)
      throw new GodwitError(
        'COMMAND_REQUIRED',
        `${site} releases ${move.vm} to ${move.target} only by a command signed with one of its command keys`,
      )
    const nowMs = now()
    const command = checkCommand(move.action, move.command, { topics, keys, nowMs })
    checkFits(command, move, site)
    await used.take(`${command.sig.key} ${command.commandId}`, Date.parse(command.notAfter) + SKEW_MS + 1, nowMs)
  }
  return {
    async check(move) {
      try {
        await check(move)
      } catch (thrown) {
        const error = toGodwitError(thrown)
        const { action, migrationId, vm, target } = move
        alerts.raise(error, { migrationId, vm, target, action, side: 'source' }, 'unauthorized_move')
        throw error
      }
    },
  }
}

/** The plan is what was signed: nothing of it is the gateway's own. */
function checkFits(command: Command, { vm, target, epoch, method, start = false, downtimeMs }: AskedMove, site: string): void {
  if (command.action !== 'start' && command.action !== 'prestage')
    throw new GodwitError('COMMAND_MISMATCH', `the command ${command.action} does not move a VM`)
  const mismatch = (what: string, signed: string, asked: string) =>
    new GodwitError('COMMAND_MISMATCH', `the signed command has ${what} ${signed}, the plan has ${asked}`)
  if (command.vmId !== vm) throw mismatch('VM', command.vmId, vm)
  if (command.toSite !== target) throw mismatch('site', command.toSite, target)
  if (command.fromSite !== undefined && command.fromSite !== site) throw mismatch('source', command.fromSite, site)
  if (command.expectedEpoch !== epoch)
    throw new GodwitError('EPOCH_STALE', `the command is for epoch ${command.expectedEpoch}, ${vm} is at epoch ${epoch}`)
  const signedMethod = command.action === 'start' ? command.method : undefined
  if (signedMethod !== undefined && signedMethod !== method) throw mismatch('method', signedMethod, method)
  const isToStart = command.action === 'start' && command.start === true
  if (start && !isToStart) throw mismatch('start', 'false', 'true')
  const { maxDowntimeMs } = command.constraints ?? {}
  if (maxDowntimeMs !== undefined && downtimeMs !== undefined && downtimeMs > maxDowntimeMs)
    throw mismatch('downtime', `${maxDowntimeMs} ms`, `${downtimeMs} ms`)
}

/** Ids of commands that were carried out, each until its command is late. */
async function createUsedIds(store: ReleaseOptions['store'], max: number, nowMs: number) {
  const used = new Map<string, number>()
  for await (const [id, untilMs] of store.entries<number>(TABLE)) used.set(id, untilMs)
  const forget = async (atMs: number) => {
    for (const [id, untilMs] of used) {
      if (untilMs > atMs) continue
      used.delete(id)
      await store.delete(TABLE, id)
    }
  }
  await forget(nowMs)
  return {
    async take(id: string, untilMs: number, atMs: number): Promise<void> {
      if (used.has(id)) throw new GodwitError('COMMAND_REUSED', `commandId ${id.split(' ')[1]} was already used`)
      if (used.size >= max) await forget(atMs)
      if (used.size >= max) throw new GodwitError('LIMIT_EXCEEDED', `${max} commands have not expired yet`)
      // In the map before the first await: the same command twice at once counts once.
      used.set(id, untilMs)
      await store.put(TABLE, id, untilMs, { sync: true })
    },
  }
}
