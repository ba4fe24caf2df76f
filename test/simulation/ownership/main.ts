// npm run sim:ownership: runs seeds of the simulation. See --help.
import { randomInt } from 'node:crypto'
import { knownNames, readArguments, runScript, UsageError, wholeNumber } from '../../../ops/script.ts'
import type { Production } from './agents.ts'
import { installHooks } from './hooks.ts'
import { installTime, realMs } from './time.ts'

const HELP = `Simulates migrations with faults, on production's code, in virtual time (docs/internals/ownership.md, "Simulation").

  --seeds N     run N seeds (default 2000)
  --first S     beginning with seed S (default 0); 'random' chooses, and the result says which
  --for S       begin no more seeds after S seconds; the result says how many ran
  --seed S      run this one seed and print its trace; --verbose adds production's log
  --mutants     sets seeds on each wrong version of the protocol until one catches it (at most --seeds)
  --mutant M    runs the seed(s) on this wrong version; with --mutants: only these, separated by commas
  --walk        crashes every party at every point of a migration, alone; --pairs N adds N seeded pairs (or 'all')
  --json        one JSON object as the result
  --progress    a line after each thousand seeds
  --help        this text
`

const SEED_MAX = 2 ** 40
const FAILED_MAX = 20

type Wish = ReturnType<typeof read>

function read() {
  const { values } = readArguments({
    options: {
      seeds: { type: 'string', default: '2000' },
      first: { type: 'string', default: '0' },
      for: { type: 'string' },
      seed: { type: 'string' },
      mutants: { type: 'boolean', default: false },
      mutant: { type: 'string' },
      walk: { type: 'boolean', default: false },
      pairs: { type: 'string', default: '0' },
      json: { type: 'boolean', default: false },
      progress: { type: 'boolean', default: false },
      verbose: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const { min, max } = { min: 0, max: SEED_MAX }
  return {
    ...values,
    seed: values.seed === undefined ? undefined : wholeNumber('--seed', values.seed, { min, max }),
    seeds: wholeNumber('--seeds', values.seeds, { min: 1, max }),
    first: values.first === 'random' ? randomInt(SEED_MAX) : wholeNumber('--first', values.first, { min, max }),
    forSeconds: values.for === undefined ? Number.POSITIVE_INFINITY : wholeNumber('--for', values.for, { min: 1, max }),
    pairsWanted: values.pairs === 'all' ? ('all' as const) : wholeNumber('--pairs', values.pairs, { min, max }),
  }
}

async function main(wish: Wish): Promise<void> {
  installHooks()
  installTime()
  if (wish.mutants) return await hunt(wish)
  if (wish.walk) return await walk(wish)
  const { runSeed } = await import('./run.ts')
  const production = await productionOf(wish.mutant)
  if (wish.seed !== undefined) {
    const { trace, ending, violation, events } = await runSeed(production, wish.seed, {
      verbose: wish.verbose,
      focus: await focusOf(wish.mutant),
    })
    console.log(trace.join('\n'))
    console.log(`seed ${wish.seed}: ${violation?.message ?? `ends in ${ending}`} (${events} events)`)
    process.exitCode = violation ? 1 : 0
    return
  }
  await runSeeds(wish, runSeed, production)
}

async function runSeeds(wish: Wish, runSeed: typeof import('./run.ts').runSeed, production: Production): Promise<void> {
  const { seeds, first, forSeconds, json, progress } = wish
  const startMs = realMs()
  const endings: Record<string, number> = { A: 0, C: 0, R: 0, none: 0 }
  const failed: { seed: number; invariant: string; message: string }[] = []
  let events = 0
  let ran = 0
  const seconds = () => (realMs() - startMs) / 1000
  for (let seed = first; seed < first + seeds && seconds() < forSeconds && failed.length < FAILED_MAX; seed++) {
    const result = await runSeed(production, seed)
    ran += 1
    events += result.events
    if (!result.violation) endings[result.ending] = (endings[result.ending] ?? 0) + 1
    else {
      failed.push({ seed, invariant: result.violation.invariant, message: result.violation.message })
      if (!json)
        console.log(
          `seed ${seed}: ${result.violation.message}\n${result.trace.slice(-60).join('\n')}\nreplay: npm run sim:ownership -- --seed ${seed}\n`,
        )
    }
    if (progress && ran % 1000 === 0)
      console.log(`${ran} of ${seeds} seeds from ${first}: ${failed.length} failed, ${seconds().toFixed(0)} s`)
  }
  if (json) console.log(JSON.stringify({ first, seeds: ran, events, endings, failed, tookMs: Math.round(1000 * seconds()) }))
  else
    console.log(
      `${ran} seeds from ${first}: ${failed.length} failed, ${JSON.stringify(endings)}, ${events} events, ${seconds().toFixed(1)} s`,
    )
  process.exitCode = failed.length > 0 ? 1 : 0
}

async function productionOf(name: string | undefined): Promise<Production> {
  if (name === undefined) return await import('./production.ts')
  const { loadMutant, mutantNamed } = await import('./hunt.ts')
  const mutant = mutantNamed(name)
  if (!mutant) throw new UsageError(`no mutant '${name}'`)
  return await loadMutant(mutant)
}

/** The faults that this wrong version is tried with. */
async function focusOf(name: string | undefined): Promise<readonly string[] | undefined> {
  return name === undefined ? undefined : (await import('./hunt.ts')).mutantNamed(name)?.focus
}

async function walk({ mutant, first, pairsWanted, json }: Wish): Promise<void> {
  const { runCase, seconds, singles } = await import('./walk.ts')
  const { createRandom } = await import('../../../sim-network/random.ts')
  const production = await productionOf(mutant)
  const startMs = realMs()
  const whole = await runCase(production, [])
  const firsts = singles(whole.points)
  const endings: Record<string, number> = {}
  const failed: unknown[] = []
  const count = (result: Awaited<ReturnType<typeof runCase>>) => {
    const ending = result.violation ? 'failed' : result.ending
    endings[ending] = (endings[ending] ?? 0) + 1
    if (!result.violation) return
    failed.push({ crashes: result.crashes, message: result.violation.message })
    if (!json) console.log(`${JSON.stringify(result.crashes)}: ${result.violation.message}\n${result.trace.slice(-40).join('\n')}\n`)
  }
  const all = pairsWanted === 'all'
  const random = createRandom(`pairs ${first}`)
  let pairs = 0
  const per = all ? 0 : Math.ceil(pairsWanted / Math.max(1, firsts.length))
  for (const one of firsts) {
    const result = await runCase(production, [one])
    count(result)
    const next = seconds(result, whole.points)
    const chosen = all ? next : Array.from({ length: Math.min(per, next.length) }, () => next[Math.floor(random.next() * next.length)]!)
    for (const second of chosen) {
      pairs += 1
      count(await runCase(production, [one, second]))
    }
  }
  const tookMs = Math.round(realMs() - startMs)
  console.log(
    JSON.stringify({
      points: Object.fromEntries(whole.points),
      singles: firsts.length,
      pairs,
      endings,
      first,
      failed: failed.slice(0, 20),
      failures: failed.length,
      tookMs,
    }),
  )
  process.exitCode = failed.length > 0 ? 1 : 0
}

async function hunt({ mutant: wanted, first, seeds, json }: Wish): Promise<void> {
  const { huntOne, mutantNamed } = await import('./hunt.ts')
  const { MUTANTS } = await import('./mutants.ts')
  const { HANGS, UNWATCHED } = await import('./hangs.ts')
  const results = []
  const known = [...MUTANTS, ...HANGS, ...UNWATCHED].map(({ name }) => name)
  const names = wanted === undefined ? MUTANTS.map(({ name }) => name) : knownNames('mutant', wanted.split(','), known)
  for (const mutant of names.map(name => mutantNamed(name)!)) {
    const caught = await huntOne(mutant, first, seeds)
    results.push(caught)
    const { seed, message, seedsRun, says } = caught
    if (!json)
      console.log(`${mutant.name}: ${says}\n    ${seed === undefined ? `NOT CAUGHT in ${seedsRun} seeds` : `seed ${seed}: ${message}`}`)
  }
  if (json) console.log(JSON.stringify(results))
  process.exitCode = results.every(({ seed }) => seed !== undefined) ? 0 : 1
}

await runScript(HELP, async () => {
  const wish = read()
  if (wish.help) return console.log(HELP)
  await main(wish)
})
