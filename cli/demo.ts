// godwit demo: a Linux VM moves A -> B -> A while it runs, then B once more cold, over an emulated link of 100 Mbit/s and 40 ms; and proof that
// nothing was lost. Everything is the real product: processes, QUIC, certificates, QEMU. Exit code 0 only if every check passed.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { guestAppend } from '../guest/image.ts'
import { requestJson } from '../ops/http-client.ts'
import { toYaml } from '../ops/yaml.ts'
import type { MigrationRecord } from '../wire/admin.ts'
import type { Report } from '../wire/control.ts'
import { fromBody, GodwitError } from '../wire/errors.ts'
import { type Observer, observe } from './demo/observer.ts'
import { buildStage, SITES, type SiteName, type Stage } from './demo/stage.ts'
import { followMigration } from './follow.ts'
import { type Io, processIo } from './io.ts'
import { json, table } from './output.ts'
import { createProgress } from './progress.ts'
import { renderReport } from './report.ts'
import { run } from './run.ts'

const VM = 'demo'
const MIB = 1024 * 1024
const READY_MS = 90_000
const AUDIT_MS = 60_000
const USAGE = `Usage: godwit demo [OPTIONS]

Boots a Linux guest of 384 MiB at site A and moves it A -> B -> A live, then to B cold, through a gateway.

Options:
  --keep    leave the demo's folder (logs, keys, consoles) when it ends
  --json    print one JSON object at the end
  --help    show this
`

type Move = { from: SiteName; to: SiteName; method: 'live' | 'cold' }
const MOVES: Move[] = [
  { from: 'a', to: 'b', method: 'live' },
  { from: 'b', to: 'a', method: 'live' },
  { from: 'a', to: 'b', method: 'cold' },
]

type Result = Move & { report: Report; silenceMs: number }

export async function demo(args: string[]): Promise<number> {
  const { values } = parseArgs({ args, options: { keep: { type: 'boolean' }, json: { type: 'boolean' }, help: { type: 'boolean' } } })
  const io = processIo()
  if (values.help) {
    io.out(USAGE)
    return 0
  }
  const say = (text: string) => (values.json ? io.err : io.out)(`${text}\n`)
  const dir = await mkdtemp(join(tmpdir(), 'godwit-demo-'))
  const startedMs = performance.now()
  say(`Godwit demo in ${dir}: gateway, sites a and b, 100 Mbit/s and 40 ms between a and the gateway`)
  let stage: Stage | undefined
  const interrupted = new AbortController()
  const stopListening = io.onInterrupt(() => interrupted.abort(new GodwitError('MIGRATION_CANCELLED', 'the demo was interrupted')))
  try {
    stage = await buildStage({ dir, godwit: (...words) => command(io, say, words) })
    const outcome = await play(stage, io, say, interrupted.signal, values.json === true)
    const problems = judge(outcome)
    conclude(outcome, problems, startedMs, say)
    if (values.json) io.out(json({ ...outcome, problems, ok: problems.length === 0 }))
    return problems.length === 0 ? 0 : 1
  } finally {
    stopListening()
    if (stage) await clear(stage)
    if (values.keep) say(`kept: ${dir}`)
    else await rm(dir, { recursive: true, force: true })
  }
}

/** Runs one godwit command here, shown as an operator would type it. */
async function command(io: Io, say: (text: string) => void, words: string[]): Promise<void> {
  say(`$ godwit ${words.join(' ')}`)
  const quiet: Io = { ...io, out: () => {} }
  const code = await run(words, quiet)
  if (code !== 0) throw new GodwitError('INTERNAL', `godwit ${words[0]} ended with ${code}`)
}

type Played = {
  results: Result[]
  audit: { pages: number; bad: number; versions: number }
  beats: { seen: number; missing: number; duplicates: number; badLines: string[]; restarts: number }
}

async function play(stage: Stage, io: Io, say: (text: string) => void, signal: AbortSignal, isQuiet: boolean): Promise<Played> {
  const observer = observe(
    VM,
    SITES.map(site => ({ site, socketPath: stage.socketOf(site) })),
  )
  try {
    await boot(stage, io, say, observer)
    const results: Result[] = []
    for (const move of MOVES) results.push(await migrate(stage, io, say, observer, move, signal, isQuiet))
    say('\nthe guest checks every page against its own checksum and version ...')
    const answer = observer.next('audit-full', AUDIT_MS)
    observer.type('audit')
    const { pages, bad, versions } = await answer
    const { beats, missing, duplicates, bad: badLines, restarts } = observer.summary()
    return { results, audit: { pages, bad, versions }, beats: { seen: beats, missing, duplicates, badLines, restarts } }
  } finally {
    observer.close()
  }
}

async function boot(stage: Stage, io: Io, say: (text: string) => void, observer: Observer): Promise<void> {
  const file = join(stage.dir, 'vm.yaml')
  const append = guestAppend({ fillBytes: 200 * MIB, dirtyBytesPerSecond: 4 * MIB, beatMs: 10 })
  await mkdir(stage.dir, { recursive: true })
  await writeFile(file, toYaml({ name: VM, memory: '384MiB', kernel: 'vmlinuz', initrd: 'initrd.img', append }))
  const ready = observer.next('ready', READY_MS)
  await command(io, say, ['vm', 'create', file, '--start', '--socket', stage.socketOf('a')])
  say('booting Linux; its programs fill 200 MiB with mixed content, rewrite 4 MiB/s of it, and beat every 10 ms on the serial port ...')
  const { pages } = await ready
  say(`ready: ${pages} pages filled`)
}

/** What `godwit migrate` does, with the beats timed beside it. */
async function migrate(
  stage: Stage,
  io: Io,
  say: (text: string) => void,
  observer: Observer,
  move: Move,
  signal: AbortSignal,
  isQuiet: boolean,
): Promise<Result> {
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
  say(`  longest silence of the beats, as an observer outside saw it: ${Math.round(silence?.ms ?? 0)} ms`)
  return { ...move, report: record.report, silenceMs: Math.round(silence?.ms ?? 0) }
}

/** Everything that must be so. */
function judge({ results, audit, beats }: Played): string[] {
  const problems: string[] = []
  const must = (isSo: boolean, text: string) => {
    if (!isSo) problems.push(text)
  }
  must(results.length === MOVES.length && results.every(({ report }) => report.outcome === 'completed'), 'a migration did not complete')
  must(audit.pages > 0 && audit.bad === 0, `the guest's own audit found ${audit.bad} bad pages of ${audit.pages}`)
  must(audit.versions > 0, 'the guest rewrote nothing: the proof would prove nothing')
  must(beats.badLines.length === 0, `the guest complained: ${beats.badLines[0]}`)
  must(beats.missing === 0, `${beats.missing} beats were lost`)
  must(beats.duplicates === 0, `${beats.duplicates} beats came twice: two copies ran`)
  must(beats.restarts === 0, 'the guest was restarted')
  return problems
}

function conclude({ results, audit, beats }: Played, problems: string[], startedMs: number, say: (text: string) => void): void {
  const rows = results.map(({ from, to, method, report, silenceMs }) => [
    `${from} -> ${to}`,
    method,
    `${(report.totalMs / 1000).toFixed(1)} s`,
    `${Math.round(report.downtimeMs ?? 0)} ms`,
    `${silenceMs} ms`,
    `${(report.guestBytes / MIB).toFixed(0)} MiB`,
    `${(report.wireBytes / MIB).toFixed(0)} MiB`,
  ])
  say(`\n${table(['move', 'method', 'total', 'downtime', 'longest silence', 'guest bytes', 'wire bytes'], rows).trimEnd()}`)
  say(`beats: ${beats.seen} seen, ${beats.missing} lost, ${beats.duplicates} twice`)
  say(`audit by the guest: ${audit.pages} pages checked, ${audit.bad} bad, ${audit.versions} rewrites so far`)
  for (const problem of problems) say(`WRONG: ${problem}`)
  say(`${problems.length === 0 ? 'all is well' : 'something is wrong'}; ${((performance.now() - startedMs) / 1000).toFixed(0)} s`)
}

/** The VM outlives its node by design; here it must not outlive the demo. */
async function clear(stage: Stage): Promise<void> {
  for (const site of SITES) {
    const node = { socketPath: stage.socketOf(site) }
    await requestJson({ ...node, method: 'POST', path: `/v1/vms/${VM}/stop`, body: { force: true } }).catch(() => {})
  }
  await stage.dispose()
}
