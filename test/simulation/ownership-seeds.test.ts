// Runs of the ownership simulation with seeds that no run had before, and the seeds that once failed. In a process of
// their own: there time is virtual and production's surroundings are exchanged. GODWIT_SIM_FIRST sets the first seed.
import { randomInt } from 'node:crypto'
import { assert, suite } from '../support/suite.ts'
import { simulate, simulateText } from './simulate.ts'

const test = suite('simulation/ownership-seeds')

/** As many as there is time for, up to this many; on a machine that does nothing else they take about a minute. */
const SEEDS = 2000
const SECONDS = 100
const SEEDS_MIN = 100
const first = process.env['GODWIT_SIM_FIRST'] ?? String(randomInt(2 ** 40))

type Result = { first: number; seeds: number; failed: { seed: number; message: string }[]; endings: Record<string, number> }

test(
  'new seeds of faults break no invariant, and all end in A, C or R',
  async () => {
    const { seeds, failed, endings } = await simulate<Result>(['--seeds', String(SEEDS), '--for', String(SECONDS), '--first', first])
    console.log(`\n  repeat: npm run sim:ownership -- --seeds ${seeds} --first ${first}   # ${JSON.stringify(endings)}`)
    const replay = failed.map(({ seed, message }) => `npm run sim:ownership -- --seed ${seed}   # ${message}`)
    assert.equal(replay, [], 'replay each with the command beside it')
    assert.ok(seeds >= SEEDS_MIN, `${seeds} seeds ran`)
    assert.ok(endings['A']! > 0 && endings['C']! > 0, JSON.stringify(endings))
  },
  { ms: 230_000 },
)

/**
 * Seeds that failed once, and what they found. How one ends without a fault moves with every change of the agents'
 * timing: it is not held.
 */
const ONCE_RED = [
  { seed: 1005395, found: "the source's QEMU gave its migration up, and the source waited in STREAMING for ever" },
  { seed: 3003749, found: 'ABORTED of a VM that was handed over and whose QEMU then died' },
  { seed: 3011626, found: 'the same; the agent of the target died silently' },
  { seed: 3014496, found: "the same; the target's agent died first" },
]

for (const { seed, found } of ONCE_RED)
  test(`seed ${seed} fails no more: ${found}`, async () => {
    const { text, code } = await simulateText(['--seed', String(seed)])
    assert.match(text.trimEnd().split('\n').at(-1) ?? '', new RegExp(`^seed ${seed}: ends in (A|C|R) `))
    assert.is(code, 0)
  })

for (const args of [['--seeds', 'abc'], ['--seeds', '0'], ['--seeds=-5'], ['--first', 'x'], ['--walk', '--pairs', 'many']])
  test(`${args.join(' ')} is refused`, async () => {
    const { text, code } = await simulateText(args)
    assert.is(code, 2)
    assert.is(text, '')
  })

test.run()
