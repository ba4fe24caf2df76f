// The short scene: a VM with a local disk migrates a -> b -> a while it runs, then to b with method cold, over an
// emulated link of 100 Mbit/s and 40 ms at site a. Its guest writes to memory and disk all the time.
import { requestJson } from '../../ops/http-client.ts'
import { profiles } from '../../sim-network/profiles.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import type { Report } from '../../wire/control.ts'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import { followMigration } from '../follow.ts'
import { table } from '../output.ts'
import { createProgress } from '../progress.ts'
import { renderReport } from '../report.ts'
import { DISK_SPEC, diskLines, examineDisk, judgeDisk } from './disk.ts'
import type { Observer } from './observer.ts'
import { boot, type DemoContext, examine, guestLines, judgeGuest, problemsOf, type SceneResult, VM, withStage } from './scene.ts'
import type { DemoStage } from './stage.ts'

type Move = { from: string; to: string; method: 'live' | 'cold' }
const MOVES: Move[] = [
  { from: 'a', to: 'b', method: 'live' },
  { from: 'b', to: 'a', method: 'live' },
  { from: 'a', to: 'b', method: 'cold' },
]
const LAST = MOVES.at(-1)!.to
const GUEST = {
  ...{ memoryMiB: 384, fillBytes: 160 * MIB, dirtyBytesPerSecond: 4 * MIB, beatMs: 10 },
  ...{ diskBytes: 32 * MIB, diskBytesPerSecond: MIB / 8, spec: { disks: [DISK_SPEC] } },
}

type Result = Move & { report: Report; silenceMs: number }

export async function playMoves(context: DemoContext): Promise<SceneResult> {
  const { up, down } = profiles.demo
  const sites = [{ name: 'a', link: { up, down } }, { name: 'b' }]
  context.say(`Godwit demo in ${context.dir}: gateway, sites a and b, 100 Mbit/s and 40 ms between a and the gateway`)
  return await withStage(context, { sites }, async (stage, observer) => {
    await boot(context, stage, observer, 'a', GUEST)
    const results: Result[] = []
    for (const move of MOVES) results.push(await migrate(context, stage, observer, move))
    const guest = await examine(context, observer)
    const disk = await examineDisk(context, stage, observer, LAST)
    const isComplete = results.every(({ report }) => report.outcome === 'completed')
    const problems = [...problemsOf([[isComplete, 'a migration did not complete']]), ...judgeGuest(guest), ...judgeDisk(disk)]
    const lines = ['', tableOf(results), ...guestLines(guest), ...diskLines(disk)]
    return { facts: { results, ...guest, disk }, lines, problems }
  })
}

/** Does the same as `godwit migrate`, and measures the beats during it. */
async function migrate({ io, say, signal, isQuiet }: DemoContext, stage: DemoStage, observer: Observer, move: Move): Promise<Result> {
  say(`\n$ godwit migrate ${VM} --to ${move.to} --method ${move.method}`)
  const fromMs = performance.now()
  const body = { vm: VM, to: move.to, method: move.method }
  const { migrationId } = await requestJson<{ migrationId: string }>({ ...stage.gateway, method: 'POST', path: '/v1/migrations', body })
  const progress = createProgress(io, () => performance.now(), isQuiet)
  const cancel = () => void requestJson({ ...stage.gateway, method: 'DELETE', path: `/v1/migrations/${migrationId}` }).catch(() => {})
  signal.addEventListener('abort', cancel, { once: true })
  let record: MigrationRecord
  try {
    record = await followMigration({ target: stage.gateway, migrationId, signal, onProgress: progress.update, onNote: progress.note })
  } finally {
    progress.finish()
    signal.removeEventListener('abort', cancel)
  }
  if (!record.report) throw record.error ? fromBody(record.error) : new GodwitError('MIGRATION_FAILED')
  await observer.next('beat', 5_000)
  const silence = observer.silenceBetween(fromMs, performance.now())
  say(renderReport(record.report).trimEnd())
  say(`  longest gap between two beats, measured outside the guest: ${Math.round(silence?.ms ?? 0)} ms`)
  return { ...move, report: record.report, silenceMs: Math.round(silence?.ms ?? 0) }
}

function tableOf(results: Result[]): string {
  const rows = results.map(({ from, to, method, report, silenceMs }) => [
    `${from} -> ${to}`,
    method,
    `${(report.totalMs / 1000).toFixed(1)} s`,
    `${Math.round(report.downtimeMs ?? 0)} ms`,
    `${silenceMs} ms`,
    `${(report.guestBytes / MIB).toFixed(0)} MiB`,
    `${((report.disks?.bytesSent ?? 0) / MIB).toFixed(0)} MiB`,
    `${(report.wireBytes / MIB).toFixed(0)} MiB`,
  ])
  return table(['move', 'method', 'total', 'downtime', 'longest beat gap', 'memory', 'disk', 'wire bytes'], rows).trimEnd()
}
