// npm run sim:ownership: runs seeds of the simulation. See --help.
import { parseArgs } from 'node:util'
import { installHooks } from './hooks.ts'
import { installTime, realMs } from './time.ts'

const HELP = `Simulates migrations with faults, on production's code, in virtual time (docs/OWNERSHIP.md, "Simulation").

  --seeds N     run N seeds (default 2000)
  --first S     beginning with seed S (default 0)
  --seed S      run this one seed and print its trace; --verbose adds production's log
  --mutants     sets seeds on each wrong version of the protocol until one catches it (at most --seeds)
  --mutant M    runs the seed(s) on this wrong version; with --mutants: only these, separated by commas
  --walk        crashes every party at every point of a migration, alone; --pairs N adds N seeded pairs (or 'all')
  --json        one JSON object as the result
  --help        this text
`

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '2000' },
    first: { type: 'string', default: '0' },
    seed: { type: 'string' },
    mutants: { type: 'boolean', default: false },
    mutant: { type: 'string' },
    walk: { type: 'boolean', default: false },
    pairs: { type: 'string', default: '0' },
    json: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})

installHooks()
installTime()

async function main(): Promise<void> {
  if (values.help) return console.log(HELP)
  if (values.mutants) return await hunt()
  if (values.walk) return await walk()
  const { runSeed } = await import('./run.ts')
  const production = await productionOf(values.mutant)
  if (values.seed !== undefined) {
    const { trace, ending, violation, events } = await runSeed(production, values.seed, { verbose: values.verbose })
    console.log(trace.join('\n'))
    console.log(`seed ${values.seed}: ${violation?.message ?? `ends in ${ending}`} (${events} events)`)
    process.exitCode = violation ? 1 : 0
    return
  }
  const startMs = realMs()
  const endings: Record<string, number> = { A: 0, C: 0, R: 0, none: 0 }
  const failed: { seed: number; invariant: string; message: string }[] = []
  const first = Number(values.first)
  const seeds = Number(values.seeds)
  let events = 0
  for (let seed = first; seed < first + seeds; seed++) {
    const result = await runSeed(production, seed)
    events += result.events
    if (!result.violation) endings[result.ending] = (endings[result.ending] ?? 0) + 1
    else {
      failed.push({ seed, invariant: result.violation.invariant, message: result.violation.message })
      if (!values.json)
        console.log(
          `seed ${seed}: ${result.violation.message}\n${result.trace.slice(-60).join('\n')}\nreplay: npm run sim:ownership -- --seed ${seed}\n`,
        )
      if (failed.length >= 20) break
    }
  }
  const tookMs = Math.round(realMs() - startMs)
  if (values.json) console.log(JSON.stringify({ first, seeds, events, endings, failed, tookMs }))
  else
    console.log(
      `${seeds} seeds from ${first}: ${failed.length} failed, ${JSON.stringify(endings)}, ${events} events, ${(tookMs / 1000).toFixed(1)} s`,
    )
  process.exitCode = failed.length > 0 ? 1 : 0
}

async function productionOf(name: string | undefined) {
  if (name === undefined) return await import('./production.ts')
  const { loadMutant, mutantNamed } = await import('./hunt.ts')
  const mutant = mutantNamed(name)
  if (!mutant) throw new Error(`no mutant ${name}`)
  return await loadMutant(mutant)
}

async function walk(): Promise<void> {
  const { runCase, seconds, singles } = await import('./walk.ts')
  const { createRandom } = await import('../../../sim-network/random.ts')
  const production = await productionOf(values.mutant)
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
    if (!values.json) console.log(`${JSON.stringify(result.crashes)}: ${result.violation.message}\n${result.trace.slice(-40).join('\n')}\n`)
  }
  const all = values.pairs === 'all'
  const random = createRandom(`pairs ${values.first}`)
  let pairs = 0
  const per = all ? 0 : Math.ceil(Number(values.pairs) / Math.max(1, firsts.length))
  for (const first of firsts) {
    const result = await runCase(production, [first])
    count(result)
    const next = seconds(result, whole.points)
    const chosen = all ? next : Array.from({ length: Math.min(per, next.length) }, () => next[Math.floor(random.next() * next.length)]!)
    for (const second of chosen) {
      pairs += 1
      count(await runCase(production, [first, second]))
    }
  }
  const tookMs = Math.round(realMs() - startMs)
  console.log(
    JSON.stringify({
      points: Object.fromEntries(whole.points),
      singles: firsts.length,
      pairs,
      endings,
      failed: failed.slice(0, 20),
      failures: failed.length,
      tookMs,
    }),
  )
  process.exitCode = failed.length > 0 ? 1 : 0
}

async function hunt(): Promise<void> {
  const { huntOne } = await import('./hunt.ts')
  const { MUTANTS } = await import('./mutants.ts')
  const results = []
  for (const mutant of MUTANTS.filter(({ name }) => values.mutant === undefined || values.mutant.split(',').includes(name))) {
    const caught = await huntOne(mutant, Number(values.first), Number(values.seeds))
    results.push(caught)
    const { seed, message, seedsRun, says } = caught
    if (!values.json)
      console.log(`${mutant.name}: ${says}\n    ${seed === undefined ? `NOT CAUGHT in ${seedsRun} seeds` : `seed ${seed}: ${message}`}`)
  }
  if (values.json) console.log(JSON.stringify(results))
  process.exitCode = results.every(({ seed }) => seed !== undefined) ? 0 : 1
}

await main()
