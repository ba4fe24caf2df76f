// godwit plan: predicts the cost of a migration for each method.
import { formatDuration } from '../../ops/units.ts'
import type { Prediction } from '../../wire/control.ts'
import { askGateway } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import { json, table } from '../output.ts'

const ASK_MS = 40_000

export const plan = command({
  name: 'plan',
  summary: 'predict the cost of a migration and recommend a method',
  details:
    "The source samples the VM's memory for one second (dirty rate, share of zero pages, compression) and predicts each method " +
    'with the rate of the last migration to the target, if it was less than an hour ago over the same link; otherwise with 100 Mbit/s. ' +
    'Local disks count by what their files take, without the image; their content is taken to compress as the memory does. ' +
    'Of a stopped VM only disks travel. The VM does not move and is not paused.',
  positionals: [{ name: 'VM', help: 'name of the VM' }],
  options: {
    to: { kind: 'text', value: 'SITE', help: 'target site', required: true },
    downtime: { kind: 'duration', value: 'TIME', help: 'longest acceptable downtime (default 300ms)' },
    json: shared.json,
    ...gatewayOptions,
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
  memoryBytes?: number
  diskBytes?: number
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
  const list = table(['', 'METHOD', 'TOTAL', 'DOWNTIME', 'WIRE BYTES', 'MEETS LIMIT'], rows)
  return `${vm} -> ${target}: ${recommended}\n${reason}\n\n${list}${renderFacts(more as PlanSource)}`
}

type PlanSource = { facts?: Facts; pathFrom?: string; pathAgeMs?: number }

function renderFacts({ facts, pathFrom, pathAgeMs }: PlanSource): string {
  if (!facts) return ''
  const { memoryBytes, diskBytes = 0, dirtyBytesPerSecond, zeroShare, duplicateShare, compressedShare, path } = facts
  const ago = pathAgeMs === undefined ? '' : `, ${formatDuration(pathAgeMs)} ago`
  const percent = (share: number) => `${Math.round(share * 100)} %`
  const origin = pathFrom === 'an assumption' ? 'assumed: no recent migration to this site' : `measured by the last migration${ago}`
  const disks = diskBytes > 0 ? `disks: ${(diskBytes / 1e6).toFixed(0)} MB that the target may lack\n` : ''
  const memory =
    memoryBytes === 0
      ? ''
      : `memory: ${percent(zeroShare)} zero, at least ${percent(duplicateShare)} duplicate, the rest compresses to ${percent(compressedShare)}; ` +
        `dirty rate ${(dirtyBytesPerSecond / 1e6).toFixed(1)} MB/s\n`
  return (
    `\n${memory}${disks}` +
    `path: ${((path.bytesPerSecond * 8) / 1e6).toFixed(0)} Mbit/s (${origin}), ${Math.round(path.rttMs)} ms round trip\n`
  )
}
