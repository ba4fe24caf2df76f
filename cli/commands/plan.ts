// godwit plan: what moving a VM would take, by each method, before it is done.
import type { Prediction } from '../../wire/control.ts'
import { askGateway } from '../client.ts'
import { command, shared } from '../command.ts'
import { json, table } from '../output.ts'

const ASK_MS = 40_000

export const plan = command({
  name: 'plan',
  summary: 'say what moving a VM would take, and recommend how',
  details:
    'The site where the VM runs watches its memory for a second (how fast it is rewritten, how much is zero, how well the rest compresses) and reckons with what ' +
    'the last migration to that site saw of the way. Nothing is moved and the VM is not paused.',
  positionals: [{ name: 'VM', help: 'name of the VM' }],
  options: {
    to: { kind: 'text', value: 'SITE', help: 'where it would run', required: true },
    downtime: { kind: 'duration', value: 'TIME', help: 'the longest pause that would be acceptable (default 300ms)' },
    json: shared.json,
    gateway: shared.gateway,
    'token-file': shared.tokenFile,
  },
  examples: ['godwit plan web-1 --to hamburg-1', 'godwit plan web-1 --to hamburg-1 --downtime 100ms --json'],
  run: async ({ options, args, io }) => {
    const downtimeMs = options.downtime === undefined ? undefined : Math.max(1, Math.round(options.downtime))
    const body = { vm: args[0]!, to: options.to, downtimeMs }
    const answer = await askGateway<Prediction>(io, options, { method: 'POST', path: '/v1/plans', body, timeoutMs: ASK_MS })
    io.out(options.json ? json(answer) : renderPlan(answer))
    return 0
  },
})

type Facts = {
  dirtyBytesPerSecond: number
  zeroShare: number
  duplicateShare: number
  compressedShare: number
  path: { bytesPerSecond: number; rttMs: number }
}

/** Pure. */
export function renderPlan({ vm, target, methods, recommended, reason, ...more }: Prediction): string {
  const seconds = (ms: number | null) => (ms === null ? '-' : `${(ms / 1000).toFixed(1)} s`)
  const rows = methods.map(({ method, isPossible, totalMs, downtimeMs, wireBytes, throttlePercent }) => [
    method === recommended ? '*' : '',
    throttlePercent > 0 ? `${method} by ${throttlePercent} %` : method,
    seconds(totalMs),
    downtimeMs === null ? '-' : `${Math.round(downtimeMs)} ms`,
    wireBytes === null ? '-' : `${(wireBytes / 1e6).toFixed(0)} MB`,
    isPossible ? 'yes' : 'no',
  ])
  const list = table(['', 'METHOD', 'IN ALL', 'PAUSE', 'ON THE WIRE', 'KEEPS THE PAUSE'], rows)
  return `${vm} -> ${target}: ${recommended}\n${reason}\n\n${list}${renderFacts(more as { facts?: Facts; pathFrom?: string })}`
}

function renderFacts({ facts, pathFrom }: { facts?: Facts; pathFrom?: string }): string {
  if (!facts) return ''
  const { dirtyBytesPerSecond, zeroShare, duplicateShare, compressedShare, path } = facts
  const percent = (share: number) => `${Math.round(share * 100)} %`
  return (
    `\nmemory: ${percent(zeroShare)} zero, ${percent(duplicateShare)} or more twice, the rest shrinks to ${percent(compressedShare)}; ` +
    `${(dirtyBytesPerSecond / 1e6).toFixed(1)} MB/s rewritten\n` +
    `way: ${((path.bytesPerSecond * 8) / 1e6).toFixed(0)} Mbit/s, ${Math.round(path.rttMs)} ms round trip (from ${pathFrom ?? 'unknown'})\n`
  )
}
