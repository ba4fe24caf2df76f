// godwit recover: which VMs of this host's node are in doubt and why, and the taking over of one whose other site has been fenced.
import type { Doubt } from '../../edge-node/doubts.ts'
import { formatDuration } from '../../ops/units.ts'
import type { GatewayStatus } from '../../wire/admin.ts'
import { askGateway, askNode } from '../client.ts'
import { command, shared } from '../command.ts'
import { json, listing } from '../output.ts'

type Copy = { site: string; online: boolean; state: string; epoch: number }
type Seen = Doubt & { /** What the gateway sees of the VM; null: it could not be asked. */ sites: Copy[] | null }

const SLOW_MS = 90_000

export const recover = command({
  name: 'recover',
  summary: "show VMs of which it is not certain that they are this site's, and end a doubt",
  details:
    'A VM is in doubt when it was handed over and the other site has not answered: it may run there, so it stays paused here, with its memory, and the other ' +
    'site is asked for ever. When that site is back the doubt ends by itself.\n\n' +
    'When it cannot come back: power its host off, sign so with the root key (godwit root fence), and give the statement here with --fencing. It is checked ' +
    "against the root's public key; without it nothing is started.",
  positionals: [{ name: 'VM', help: 'only this one (default: all)', optional: true }],
  options: {
    fencing: {
      kind: 'path',
      value: 'FILE',
      help: 'statement of godwit root fence: the VM is taken over, with its memory where that is still here',
    },
    json: shared.json,
    socket: shared.socket,
    gateway: shared.gateway,
    'token-file': shared.tokenFile,
  },
  examples: ['godwit recover', 'godwit recover web-1 --fencing web-1-2.fencing'],
  run: async ({ options, args, io }) => {
    const [vm] = args
    if (options.fencing !== undefined) {
      const { GodwitError } = await import('../../wire/errors.ts')
      if (vm === undefined) throw new GodwitError('USAGE', '--fencing is about one VM: name it', { hint: 'see godwit recover --help' })
      const { readArmored } = await import('../../ops/files.ts')
      const fencing = Buffer.from(await readArmored(options.fencing, 'FENCING STATEMENT')).toString('base64')
      const path = `/v1/vms/${encodeURIComponent(vm)}`
      const ask = <T>(action: string, body: unknown) =>
        askNode<T>(io, options, { method: 'POST', path: `${path}/${action}`, body, timeoutMs: SLOW_MS })
      const taken = await ask<{ state: string; epoch: number }>('reclaim', { fencing })
      // Its QEMU was gone: nothing of its memory was left to go on from.
      const isCold = taken.state === 'stopped' || taken.state === 'failed'
      const now = isCold ? await ask<{ state: string; epoch: number }>('start', {}) : taken
      io.out(
        options.json
          ? json(now)
          : `${vm} is this site's at epoch ${now.epoch} and ${isCold ? 'was started anew' : 'goes on with its memory'}\n`,
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
  return doubts.length === 0 ? 'nothing is in doubt\n' : doubts.map(doubt => renderDoubt(doubt, nowMs)).join('\n')
}

function renderDoubt({ vm, state, epoch, why, record, asked, sites, next }: Seen, nowMs: number): string {
  const ago = (at: number) => `${formatDuration(Math.max(0, nowMs - at))} ago`
  const rows: [string, string][] = [['VM', `${vm} (${state}, this site's at epoch ${epoch})`]]
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
  rows.push(['gateway sees', copies ? copies.join('; ') || 'no such VM' : 'not asked (no gateway or token at hand)'])
  return `${listing(rows)}what to do:\n${next.map((line, at) => `  ${at + 1}. ${line}\n`).join('')}`
}
