// npm run bench:disk: a VM with a disk moves, by Godwit and by QEMU's own best way, over the same emulated links,
// packet by packet, in one run. Root only (network namespaces, TUN). Enters: a selection of cells, cases and movers.
// Leaves: a table, the goals with their verdicts; each result is stored at once. The figures are of one machine:
// compare only figures of one run.
import { existsSync, rmSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { loadSodium } from '../../crypto/identity.ts'
import { guestImage } from '../../guest/image.ts'
import { decimalNumber, readArguments, runScript, wholeNumber } from '../../ops/script.ts'
import { namespacesMissing } from '../../sim-network/namespaces.ts'
import { removeRemains } from '../wan/bed.ts'
import { choose } from '../wan/cells.ts'
import { commitOf } from '../wan/commit.ts'
import { openLines } from '../wan/results.ts'
import { goalsTable } from '../wan/table.ts'
import { BASES, DISK_CELLS, MOVERS } from './cases.ts'
import { makeGodwitWithDisk } from './godwit.ts'
import { type Outcome, summarise } from './outcome.ts'
import { makeQemuWithDisk } from './qemu.ts'
import { type DiskRun, runOne } from './run-one.ts'
import { diskTable, judge } from './verdicts.ts'

const RESULTS = fileURLToPath(new URL('../../.cache/bench-disk/results.jsonl', import.meta.url))
const names = (all: readonly { name: string }[]) => all.map(({ name }) => name).join(', ')

const USAGE = `Usage: npm run bench:disk -- [OPTIONS]        (needs root: it creates links between network namespaces)

  --cells LIST       of ${names(DISK_CELLS)} (Mbit/s / ms round trip / loss; default: all)
  --bases LIST       what the target has before the first move, of ${names(BASES)} (default: all)
  --movers LIST      of ${names(MOVERS)} (default: all)
  --back MINUTES     the VM moves back after this time (default 10; 'no': it does not)
  --reps N           runs of each (default 1)
  --timeout SECONDS  a move that takes longer is 'not done' (default 300)
  --oracle           also measure zstd -19 --long over what the target lacks (a minute for each move)
  --results FILE     file of results: new runs are added, finished ones are skipped (default .cache/bench-disk/results.jsonl)
  --fresh            delete earlier results
  --report           run nothing: print the summary of the results
`

const TEXT = { type: 'string' } as const
const FLAG = { type: 'boolean' } as const
const OPTIONS = {
  ...{ cells: TEXT, bases: TEXT, movers: TEXT, oracle: FLAG, fresh: FLAG, report: FLAG, help: FLAG },
  back: { type: 'string', default: '10' },
  reps: { type: 'string', default: '1' },
  timeout: { type: 'string', default: '300' },
  results: { type: 'string', default: RESULTS },
} as const

const read = () => readArguments({ options: OPTIONS }).values

function select(values: ReturnType<typeof read>): DiskRun[] {
  const repetitions = wholeNumber('--reps', values.reps, { min: 1, max: 1000 })
  const timeoutMs = 1000 * decimalNumber('--timeout', values.timeout, { min: 1, max: 86_400 })
  const backAfterMinutes = values.back === 'no' ? undefined : decimalNumber('--back', values.back, { min: 0, max: 1440 })
  const hasOracle = values.oracle === true
  const all = { cells: choose(DISK_CELLS, values.cells, 'cell'), bases: choose(BASES, values.bases, 'base') }
  const movers = choose(MOVERS, values.movers, 'mover')
  return Array.from({ length: repetitions }, (_, at) => at + 1).flatMap(repetition =>
    all.cells.flatMap(cell =>
      all.bases.flatMap(({ name: base }) =>
        movers.map(({ name: mover }) => ({ cell, base, mover, repetition, timeoutMs, backAfterMinutes, hasOracle })),
      ),
    ),
  )
}

const keyOf = ({ cell, mover, case: which, repetition }: Outcome): string => `${cell} ${mover} ${which} ${repetition}`

async function runAll(runs: readonly DiskRun[], path: string): Promise<void> {
  const results = openLines(path, keyOf)
  const commit = commitOf()
  for (const run of runs) {
    const nothing = { bytesForth: 0, bytesBack: 0, cpuSeconds: 0 }
    const first: Outcome = { cell: run.cell.name, mover: run.mover, case: run.base, repetition: run.repetition, ...nothing }
    const last = run.backAfterMinutes === undefined ? first : { ...first, case: `back to ${run.base}` }
    if (results.has(last)) continue
    let next = first
    const add = (outcome: Outcome) => {
      next = last
      results.add({ ...outcome, ...commit })
      process.stderr.write(`${tell(outcome)}\n`)
    }
    try {
      await runOne(run.mover === 'godwit' ? makeGodwitWithDisk : makeQemuWithDisk, run, add)
    } catch (error) {
      add({ ...next, failure: error instanceof Error ? error.message : String(error) })
    }
  }
}

const tell = ({ cell, mover, case: which, totalMs, downtimeMs, bytesForth, failure, note }: Outcome): string => {
  const figures = failure ?? `${(totalMs! / 1000).toFixed(1)} s, downtime ${downtimeMs} ms`
  return `${cell} ${which} ${mover}: ${figures}, ${(bytesForth / 1e6).toFixed(1)} MB${note ? ` (${note})` : ''}`
}

async function main(): Promise<number> {
  const values = read()
  if (values.help) {
    process.stdout.write(USAGE)
    return 0
  }
  const runs = select(values)
  if (values.fresh) rmSync(values.results, { force: true })
  if (!values.report) {
    const missing = namespacesMissing() ?? (guestImage() ? undefined : 'the guest image is missing: run node scripts/setup.js')
    if (missing) {
      process.stderr.write(`error SETUP_NEEDED: ${missing}\n`)
      return 2
    }
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const)
      process.once(signal, () => {
        removeRemains(pid => pid === process.pid)
        process.exit(130)
      })
    removeRemains(pid => !existsSync(`/proc/${pid}`))
    await loadSodium()
    await runAll(runs, values.results)
  }
  const wanted = new Set(runs.flatMap(run => [run.base, `back to ${run.base}`].map(which => `${run.cell.name} ${run.mover} ${which}`)))
  const outcomes = openLines(values.results, keyOf).all()
  const rows = summarise(outcomes.filter(({ cell, mover, case: which }) => wanted.has(`${cell} ${mover} ${which}`)))
  console.log(`${cpus().length} processors, load ${loadavg()[0]!.toFixed(1)}; a guest of 256 MiB with a disk of 128 MiB\n`)
  console.log(diskTable(rows))
  const verdicts = judge(rows)
  if (verdicts.length > 0) console.log(`\n${goalsTable(verdicts)}`)
  return rows.some(({ bad }) => bad > 0) ? 1 : 0
}

await runScript(USAGE, main)
