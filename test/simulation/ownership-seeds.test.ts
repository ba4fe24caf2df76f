// 2,000 runs of the ownership simulation. In a process of their own: there time is virtual and production's surroundings are exchanged.

import { assert, suite } from '../support/suite.ts'
import { simulate } from './simulate.ts'

const test = suite('simulation/ownership-seeds')

type Result = { seeds: number; failed: { seed: number; message: string }[]; endings: Record<string, number> }

test(
  'two thousand seeds of faults break no invariant, and all end in A, C or R',
  async () => {
    const { seeds, failed, endings } = await simulate<Result>(['--seeds', '2000'])
    assert.equal(failed, [], 'replay one with npm run sim:ownership -- --seed N')
    assert.is(seeds, 2000)
    assert.ok(endings.A! > 0 && endings.C! > 0 && endings.R! > 0, JSON.stringify(endings))
  },
  { ms: 230_000 },
)

test.run()
