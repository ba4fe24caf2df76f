// The signed command `start` for `godwit migrate --key`: the source checks the signature itself and does not rely on
// the gateway. Enters: a key file, the VM and its target, the gateway's view of the VM. Leaves: the signed command.
import { randomUUID } from 'node:crypto'
import { GodwitError } from '../wire/errors.ts'
import { askGateway } from './client.ts'
import type { ClientFlags } from './config.ts'
import type { Io } from './io.ts'

/** The source checks it after the target has accepted, so this is the longest time that gateway and nodes allow. */
const GOOD_FOR_MS = 60_000

type SignedMoveOptions = ClientFlags & { key: string; tenant?: string | undefined }
export type WantedMove = {
  vm: string
  to: string
  method?: 'live' | 'cold' | undefined
  downtimeMs?: number | undefined
  start?: boolean | undefined
}
type Seen = { name: string; site: string; epoch: number; state: string; online: boolean }

/** CONFIG_UNREADABLE, CONFIG_INVALID (the key), VM_UNKNOWN, and errors of the gateway. */
export async function signMove(io: Io, options: SignedMoveOptions, { vm, to, method, downtimeMs, start }: WantedMove): Promise<object> {
  const [{ commandTopicsOf, decodeCommandKey, signCommand }, { readSecret }, { commandTenant }] = await Promise.all([
    import('../crypto/command-keys.ts'),
    import('../ops/files.ts'),
    import('./config.ts'),
  ])
  const key = decodeCommandKey(await readSecret(options.key), options.key)
  const tenant = await commandTenant(io, options.tenant)
  const { vms } = await askGateway<{ vms: Seen[] }>(io, options, { path: '/v1/vms' })
  const here = vms.filter(({ name, state }) => name === vm && state !== 'incoming')
  const found = here.find(({ online }) => online) ?? here[0]
  if (!found) throw new GodwitError('VM_UNKNOWN', `no site reports a VM '${vm}'`)
  const command = {
    commandId: randomUUID(),
    vmId: vm,
    toSite: to,
    fromSite: found.site,
    expectedEpoch: found.epoch,
    reason: 'godwit migrate',
    notAfter: new Date(Date.now() + GOOD_FOR_MS).toISOString(),
    ...(method === undefined ? {} : { method }),
    ...(start ? { start } : {}),
    ...(downtimeMs === undefined ? {} : { constraints: { maxDowntimeMs: downtimeMs } }),
  }
  return signCommand(key, commandTopicsOf(tenant), 'start', command)
}
