// npm run bench:wan: Godwit beside QEMU's own migration over the same modelled links, packet by packet, in one run. Root only (network namespaces, TUN).
// Enters: a selection of cells, guests and variants. Leaves: a table with medians and ranges, the issue's targets held against it, a picture; results are kept
// as they come. Figures are of one machine: compare what one run prints side by side.
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { loadSodium } from '../../crypto/identity.ts'
import { guestImage } from '../../guest/image.ts'
import { namespacesMissing } from '../../sim-network/namespaces.ts'
import { sweep } from './bed.ts'
import { CELLS, choose, fillBytesOf, GUESTS } from './cells.ts'
import { makeGodwit } from './godwit.ts'
import { oracleOf } from './oracle.ts'
import type { Outcome } from './outcome.ts'
import { plotSvg } from './plot.ts'
import { makeQemu } from './qemu.ts'
import { openResults, type Results } from './results.ts'
import { type RunOptions, runOne } from './run-one.ts'
import { judge, summarise } from './summary.ts'
import { table, verdictTable } from './table.ts'
import { VARIANTS } from './variants.ts'

const RESULTS = fileURLToPath(new URL('../../.cache/bench-wan/results.jsonl', import.meta.url))
const PLOT = fileURLToPath(new URL('../../.cache/bench-wan/wan.svg', import.meta.url))
const QUICK = { cells: '100/20,200/150/1%', guests: 'mixed', variants: 'godwit,multifd-zstd1-bbr,plain-bbr', reps: '1' }

const USAGE = `Usage: npm run bench:wan -- [OPTIONS]        (as root: it lays links between network namespaces)

  --cells LIST       of ${CELLS.map(({ name }) => name).join(', ')} (Mbit/s / ms round trip / loss; default: all)
  --guests LIST      of ${GUESTS.map(({ name }) => name).join(', ')} (default: all)
  --variants LIST    of ${VARIANTS.map(({ name }) => name).join(', ')} (default: all)
  --reps N           runs of each (default 3)
  --timeout SECONDS  then a run is 'not done' (default 120)
  --budget SECONDS   begin no run that would not end in this time, going by the longest so far
  --quick            ${QUICK.cells}; ${QUICK.guests}; ${QUICK.variants}; once (about 3 minutes)
  --results FILE     runs are added to it and not run again (default .cache/bench-wan/results.jsonl)
  --fresh            forget the results there were
  --report           run nothing: print what the results say
  --oracle           measure zstd -19 --long over the final pages too (minutes for each guest)
  --json FILE        write rows and verdicts as JSON
  --plot FILE        where the picture goes (default .cache/bench-wan/wan.svg)
  --keep             keep the folders with the logs of each run
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

type Wanted = { runs: readonly RunOptions[]; results: Results }

function select(values: ReturnType<typeof read>): RunOptions[] {
  const wish = { ...(values.quick ? QUICK : {}), ...Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) }
  const cells = choose(CELLS, wish.cells, 'cell')
  const guests = choose(GUESTS, wish.guests, 'guest')
  const variants = choose(VARIANTS, wish.variants, 'variant')
  const repetitions = Number(wish.reps ?? 3)
  if (!(repetitions >= 1)) throw new TypeError(`--reps '${wish.reps}': expected a number from 1`)
  const timeoutMs = Number(values.timeout) * 1000
  // Repetitions are the outermost loop: what else the machine does then falls on all variants alike.
  return Array.from({ length: repetitions }, (_, at) => at + 1).flatMap(repetition =>
    cells.flatMap(cell =>
      guests.flatMap(guest => variants.map(variant => ({ cell, guest, variant, repetition, timeoutMs, keep: values.keep === true }))),
    ),
  )
}

const read = () => parseArgs({ options: OPTIONS }).values

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

function commitOf(): { commit?: string } {
  try {
    const words = ['rev-parse', '--short', 'HEAD']
    return {
      commit: execFileSync('git', words, { cwd: import.meta.dirname, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim(),
    }
  } catch {
    return {}
  }
}

async function attempt(options: RunOptions): Promise<Outcome> {
  const { cell, guest, variant, repetition } = options
  try {
    return await runOne(variant.kind === 'godwit' ? makeGodwit : makeQemu, options)
  } catch (error) {
    const failure = error instanceof Error ? error.message : String(error)
    const none = { bytesAb: 0, bytesBa: 0, deliveredAb: 0, cpuSeconds: 0, late1: 0, late5: 0, steal: 0, badLines: 0 }
    return { cell: cell.name, guest: guest.name, variant: variant.name, repetition, failure, ...none }
  }
}

function tellOutcome({ cell, guest, variant, totalMs, downtimeMs, bytesAb, failure, note }: Outcome): string {
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
  if (values.fresh) rmSync(values.results, { force: true })
  const results = openResults(values.results)
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const)
    process.once(signal, () => {
      if (!values.report) sweep(pid => pid === process.pid)
      process.exit(130)
    })
  if (!values.report) {
    const missing = namespacesMissing() ?? (guestImage() ? undefined : 'the guest image is not built: run node scripts/setup.js')
    if (missing) {
      process.stderr.write(`error SETUP_NEEDED: ${missing}\n`)
      return 2
    }
    sweep(pid => !existsSync(`/proc/${pid}`))
    await loadSodium()
    await runAll({ runs, results }, values.budget === undefined ? Number.POSITIVE_INFINITY : Number(values.budget) * 1000)
  }
  await show(runs, results, values)
  return 0
}

async function show(runs: readonly RunOptions[], results: Results, { oracle, json, plot }: ReturnType<typeof read>): Promise<void> {
  const wanted = new Set(runs.map(({ cell, guest, variant, repetition }) => `${cell.name} ${guest.name} ${variant.name} ${repetition}`))
  const outcomes = results.all().filter(({ cell, guest, variant, repetition }) => wanted.has(`${cell} ${guest} ${variant} ${repetition}`))
  const rows = summarise(outcomes)
  const oracles = await oracleOf({
    isMeasured: oracle === true,
    cells: runs.map(({ cell }) => cell),
    guests: runs.map(({ guest }) => guest),
  })
  const verdicts = judge(rows, (cell, guest) => oracles(cell, guest, rows))
  const fills = [...new Set(runs.map(({ cell }) => `${fillBytesOf(cell) / 1e6} MB at ${cell.name}`))].join(', ')
  console.log(`${cpus().length} processors, load ${loadavg()[0]!.toFixed(1)}; a guest of 384 MiB with ${fills} filled\n`)
  console.log(table(rows))
  if (verdicts.length > 0) console.log(`\n${verdictTable(verdicts)}`)
  const bad = outcomes.filter(({ badLines }) => badLines > 0)
  for (const { cell, guest, variant } of bad) console.log(`\nBAD memory: ${cell} ${guest} ${variant}: the guest's own audit complained`)
  if (rows.length > 0) {
    mkdirSync(dirname(plot), { recursive: true })
    writeFileSync(plot, plotSvg(rows))
    console.log(`\npicture: ${plot}`)
  }
  if (json) writeFileSync(json, `${JSON.stringify({ rows, verdicts, outcomes }, undefined, 1)}\n`)
}

try {
  process.exitCode = await main()
} catch (error) {
  if (!(error instanceof TypeError)) throw error
  process.stderr.write(`error USAGE: ${error.message}\n${USAGE}`)
  process.exitCode = 2
}
