// godwit recover: lists VMs of this node whose owner is uncertain, with the reason, and takes over a VM whose other
// site is fenced.
import type { Doubt } from '../../edge-node/doubts.ts'
import { formatDuration } from '../../ops/units.ts'
import type { GatewayStatus } from '../../wire/admin.ts'
import { askGateway, askNode } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import { json, listing } from '../output.ts'

type Copy = { site: string; online: boolean; state: string; epoch: number }
/** `sites`: the copies that the gateway knows of; null: the gateway could not be asked. */
type Seen = Doubt & { sites: Copy[] | null }

const SLOW_MS = 90_000

export const recover = command({
  name: 'recover',
  summary: 'show VMs whose owner is not certain, and take over a VM with a fencing statement',
  details:
    'A VM is in doubt when this site has handed it over and the other site has not confirmed it. The VM may run there, so it stays paused here with its memory, and ' +
    'this site keeps asking the other one. The doubt ends by itself when that site reconnects.\n\n' +
    'If that site cannot come back: power its host off, sign a fencing statement with the root key (godwit root fence), and pass it to --fencing. It is checked ' +
    "against the root's public key; without it no VM is started.",
  positionals: [{ name: 'VM', help: 'show only this VM (default: all)', optional: true }],
  options: {
    fencing: {
      kind: 'path',
      value: 'FILE',
      help: 'statement of godwit root fence: take the VM over, with its memory if this site still has it',
    },
    json: shared.json,
    socket: shared.socket,
    ...gatewayOptions,
  },
  examples: ['godwit recover', 'godwit recover web-1 --fencing web-1-2.fencing'],
  run: async ({ options, args, io }) => {
    const [vm] = args
    if (options.fencing !== undefined) {
      const { GodwitError } = await import('../../wire/errors.ts')
      if (vm === undefined)
        throw new GodwitError('USAGE', '--fencing applies to one VM: name the VM', { hint: 'see godwit recover --help' })
      const { readArmored } = await import('../../ops/files.ts')
      const fencing = Buffer.from(await readArmored(options.fencing, 'FENCING STATEMENT')).toString('base64')
      const path = `/v1/vms/${encodeURIComponent(vm)}`
      const ask = <T>(action: string, body: unknown) =>
        askNode<T>(io, options, { method: 'POST', path: `${path}/${action}`, body, timeoutMs: SLOW_MS })
      const taken = await ask<{ state: string; epoch: number }>('reclaim', { fencing })
      // Its QEMU has exited, so its memory is lost: boot it.
      const isCold = taken.state === 'stopped' || taken.state === 'failed'
      const now = isCold ? await ask<{ state: string; epoch: number }>('start', {}) : taken
      io.out(
        options.json
          ? json(now)
          : `this site owns ${vm} at epoch ${now.epoch}; the VM ${isCold ? 'was booted again without its memory' : 'continues with its memory'}\n`,
      )
      return 0
    }
    const { doubts } = await askNode<{ doubts: Doubt[] }>(io, options, { path: '/v1/doubts' })
    const status = await askGateway<GatewayStatus>(io, options, { path: '/v1/status' }).catch(() => undefined)
    const seen = doubts
      .filter(doubt => vm === undefined || doubt.vm === vm)
      .map((doubt): Seen => ({ ...doubt, sites: status ? copiesOf(status, doubt.vm) : null }))
    io.out(options.json ? json(seen) : renderDoubts(seen, Date.now()))
    return 0
  },
})

const copiesOf = ({ vms }: GatewayStatus, name: string): Copy[] =>
  vms.filter(vm => vm.name === name).map(({ site, online, state, epoch }) => ({ site, online, state, epoch }))

/** Pure: `nowMs` is Unix ms. */
export function renderDoubts(doubts: readonly Seen[], nowMs: number): string {
  return doubts.length === 0 ? 'no VM is in doubt\n' : doubts.map(doubt => renderDoubt(doubt, nowMs)).join('\n')
}

function renderDoubt({ vm, state, epoch, why, record, asked, sites, next }: Seen, nowMs: number): string {
  const ago = (at: number) => `${formatDuration(Math.max(0, nowMs - at))} ago`
  const rows: [string, string][] = [['VM', `${vm} (${state}, epoch ${epoch} at this site)`]]
  if (why) rows.push(['why', `${why.code}: ${why.message}`])
  rows.push([
    'last record',
    record ? `${record.state}, epoch ${record.epoch}, to ${record.target}, ${ago(record.at)} (migration ${record.migrationId})` : 'none',
  ])
  if (record)
    rows.push([
      'asked',
      asked
        ? `${record.target}, ${asked.times} times in ${formatDuration(asked.lastAt - asked.firstAt)}, last ${ago(asked.lastAt)}: ${asked.said.code} ${asked.said.message}`
        : `${record.target}: no answer yet`,
    ])
  const copies = sites?.map(copy => `${copy.site} ${copy.online ? copy.state : 'offline'}, epoch ${copy.epoch}`)
  rows.push(['gateway sees', copies ? copies.join('; ') || 'no such VM' : 'not asked (no gateway, or no token)'])
  return `${listing(rows)}what to do:\n${next.map((line, at) => `  ${at + 1}. ${line}\n`).join('')}`
}
