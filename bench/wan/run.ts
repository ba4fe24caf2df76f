// npm run bench:wan: Godwit and QEMU's own migration over the same emulated links, packet by packet, in one run. Root
// only (network namespaces, TUN). Enters: a selection of cells, guests and variants. Leaves: a table with medians and
// ranges, the goals with their verdicts, a chart; each result is stored at once. The figures are of one machine:
// compare only figures of one run.
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadSodium } from '../../crypto/identity.ts'
import { guestImage } from '../../guest/image.ts'
import { decimalNumber, readArguments, runScript, wholeNumber } from '../../ops/script.ts'
import { namespacesMissing } from '../../sim-network/namespaces.ts'
import { removeRemains } from './bed.ts'
import { CELLS, choose, fillBytesOf, GUESTS } from './cells.ts'
import { commitOf } from './commit.ts'
import { makeGodwit } from './godwit.ts'
import { oracleOf } from './oracle.ts'
import type { BenchRun } from './outcome.ts'
import { plotSvg } from './plot.ts'
import { makeQemu } from './qemu.ts'
import { openResults, type Results } from './results.ts'
import { type RunOneOptions, runOne } from './run-one.ts'
import { judgeGoals, summarise } from './summary.ts'
import { goalsTable, resultsTable } from './table.ts'
import { VARIANTS } from './variants.ts'

const RESULTS = fileURLToPath(new URL('../../.cache/bench-wan/results.jsonl', import.meta.url))
const PLOT = fileURLToPath(new URL('../../.cache/bench-wan/wan.svg', import.meta.url))
const QUICK = { cells: '100/20,200/150/1%', guests: 'mixed', variants: 'godwit,multifd-zstd1-bbr,plain-bbr', reps: '1' }

const USAGE = `Usage: npm run bench:wan -- [OPTIONS]        (needs root: it creates links between network namespaces)

  --cells LIST       of ${CELLS.map(({ name }) => name).join(', ')} (Mbit/s / ms round trip / loss; default: all)
  --guests LIST      of ${GUESTS.map(({ name }) => name).join(', ')} (default: all)
  --variants LIST    of ${VARIANTS.map(({ name }) => name).join(', ')} (default: all)
  --reps N           runs of each (default 3)
  --timeout SECONDS  a run that takes longer is 'not done' (default 120)
  --budget SECONDS   start no run that would exceed this time, estimated from the longest run so far
  --quick            ${QUICK.cells}; ${QUICK.guests}; ${QUICK.variants}; once (about 3 minutes)
  --results FILE     file of results: new runs are added, finished ones are skipped (default .cache/bench-wan/results.jsonl)
  --fresh            delete earlier results
  --report           run nothing: print the summary of the results
  --oracle           also measure zstd -19 --long over the final pages (minutes for each guest)
  --json FILE        write rows and verdicts as JSON
  --plot FILE        file of the chart (default .cache/bench-wan/wan.svg)
  --keep             keep the folder with the logs of each run
`

const TEXT = { type: 'string' } as const
const FLAG = { type: 'boolean' } as const
const OPTIONS = {
  ...{ cells: TEXT, guests: TEXT, variants: TEXT, reps: TEXT, json: TEXT, budget: TEXT },
  ...{ quick: FLAG, fresh: FLAG, report: FLAG, oracle: FLAG, keep: FLAG, help: FLAG },
  timeout: { type: 'string', default: '120' },
  results: { type: 'string', default: RESULTS },
  plot: { type: 'string', default: PLOT },
} as const

type Wanted = { runs: readonly RunOneOptions[]; results: Results }

function select(values: ReturnType<typeof read>): RunOneOptions[] {
  const wish = { ...(values.quick ? QUICK : {}), ...Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) }
  const cells = choose(CELLS, wish.cells, 'cell')
  const guests = choose(GUESTS, wish.guests, 'guest')
  const variants = choose(VARIANTS, wish.variants, 'variant')
  const repetitions = wholeNumber('--reps', wish.reps ?? '3', { min: 1, max: 1000 })
  const timeoutMs = 1000 * decimalNumber('--timeout', values.timeout, { min: 1, max: 86_400 })
  // Repetitions are the outermost loop, so that other load of the machine affects all variants equally.
  return Array.from({ length: repetitions }, (_, at) => at + 1).flatMap(repetition =>
    cells.flatMap(cell =>
      guests.flatMap(guest => variants.map(variant => ({ cell, guest, variant, repetition, timeoutMs, keep: values.keep === true }))),
    ),
  )
}

const read = () => readArguments({ options: OPTIONS }).values

async function runAll({ runs, results }: Wanted, budgetMs: number): Promise<void> {
  const startMs = performance.now()
  let longestMs = 0
  for (const [at, options] of runs.entries()) {
    const { cell, guest, variant, repetition } = options
    if (results.has({ cell: cell.name, guest: guest.name, variant: variant.name, repetition })) continue
    const beginMs = performance.now()
    if (beginMs - startMs + longestMs > budgetMs) break
    const outcome = await attempt(options)
    longestMs = Math.max(longestMs, performance.now() - beginMs)
    results.add({ ...outcome, ...commitOf() })
    process.stderr.write(`${at + 1}/${runs.length} ${tellOutcome(outcome)}\n`)
  }
}

async function attempt(options: RunOneOptions): Promise<BenchRun> {
  const { cell, guest, variant, repetition } = options
  try {
    return await runOne(variant.kind === 'godwit' ? makeGodwit : makeQemu, options)
  } catch (error) {
    const failure = error instanceof Error ? error.message : String(error)
    const none = { bytesAb: 0, bytesBa: 0, deliveredAb: 0, cpuSeconds: 0, late1: 0, late5: 0, steal: 0, badLines: 0 }
    return { cell: cell.name, guest: guest.name, variant: variant.name, repetition, failure, ...none }
  }
}

function tellOutcome({ cell, guest, variant, totalMs, downtimeMs, bytesAb, failure, note }: BenchRun): string {
  const figures = failure ?? `${(totalMs! / 1000).toFixed(1)} s, downtime ${downtimeMs} ms`
  return `${cell} ${guest} ${variant}: ${figures}, ${(bytesAb / 1e6).toFixed(1)} MB${note ? ` (${note})` : ''}`
}

async function main(): Promise<number> {
  const values = read()
  if (values.help) {
    process.stdout.write(USAGE)
    return 0
  }
  const runs = select(values)
  const budgetMs =
    values.budget === undefined ? Number.POSITIVE_INFINITY : 1000 * decimalNumber('--budget', values.budget, { min: 1, max: 1e7 })
  if (values.fresh) rmSync(values.results, { force: true })
  const results = openResults(values.results)
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const)
    process.once(signal, () => {
      if (!values.report) removeRemains(pid => pid === process.pid)
      process.exit(130)
    })
  if (!values.report) {
    const missing = namespacesMissing() ?? (guestImage() ? undefined : 'the guest image is missing: run node scripts/setup.js')
    if (missing) {
      process.stderr.write(`error SETUP_NEEDED: ${missing}\n`)
      return 2
    }
    removeRemains(pid => !existsSync(`/proc/${pid}`))
    await loadSodium()
    await runAll({ runs, results }, budgetMs)
  }
  await show(runs, results, values)
  return 0
}

async function show(runs: readonly RunOneOptions[], results: Results, { oracle, json, plot }: ReturnType<typeof read>): Promise<void> {
  const wanted = new Set(runs.map(({ cell, guest, variant, repetition }) => `${cell.name} ${guest.name} ${variant.name} ${repetition}`))
  const outcomes = results.all().filter(({ cell, guest, variant, repetition }) => wanted.has(`${cell} ${guest} ${variant} ${repetition}`))
  const rows = summarise(outcomes)
  const oracles = await oracleOf({
    isMeasured: oracle === true,
    cells: runs.map(({ cell }) => cell),
    guests: runs.map(({ guest }) => guest),
  })
  const verdicts = judgeGoals(rows, (cell, guest) => oracles(cell, guest, rows))
  const fills = [...new Set(runs.map(({ cell }) => `${fillBytesOf(cell) / 1e6} MB at ${cell.name}`))].join(', ')
  console.log(`${cpus().length} processors, load ${loadavg()[0]!.toFixed(1)}; a guest of 384 MiB with ${fills} filled\n`)
  console.log(resultsTable(rows))
  if (verdicts.length > 0) console.log(`\n${goalsTable(verdicts)}`)
  const bad = outcomes.filter(({ badLines }) => badLines > 0)
  for (const { cell, guest, variant } of bad) console.log(`\nBAD memory: ${cell} ${guest} ${variant}: the page check of the guest failed`)
  if (rows.length > 0) {
    mkdirSync(dirname(plot), { recursive: true })
    writeFileSync(plot, plotSvg(rows))
    console.log(`\npicture: ${plot}`)
  }
  if (json) writeFileSync(json, `${JSON.stringify({ rows, verdicts, outcomes }, undefined, 1)}\n`)
}

await runScript(USAGE, main)
