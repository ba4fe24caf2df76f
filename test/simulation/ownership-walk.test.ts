// A crash of every party at every point of a migration, alone, and a seeded choice of pairs (npm run sim:ownership -- --walk --pairs all runs them all).
import { assert, suite } from '../support/suite.ts'
import { simulate } from './simulate.ts'

const test = suite('simulation/ownership-walk')

type Result = { singles: number; pairs: number; endings: Record<string, number>; failed: unknown[] }

test(
  'whoever crashes or loses power wherever, all ends in A, C or R',
  async () => {
    const { singles, pairs, endings, failed } = await simulate<Result>(['--walk', '--pairs', '500'])
    assert.equal(failed, [])
    assert.ok(singles > 200 && pairs >= 500, `${singles} singles, ${pairs} pairs`)
    assert.ok(endings.A! > 0 && endings.C! > 0 && endings.R! > 0, JSON.stringify(endings))
  },
  { ms: 230_000 },
)

test.run()
