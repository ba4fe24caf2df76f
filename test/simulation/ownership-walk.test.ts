// A crash of every party at every point of a migration, alone, and a choice of pairs that no run had before (npm run
// sim:ownership -- --walk --pairs all runs them all). GODWIT_SIM_FIRST chooses the pairs.
import { randomInt } from 'node:crypto'
import { assert, suite } from '../support/suite.ts'
import { simulate } from './simulate.ts'

const test = suite('simulation/ownership-walk')

const first = process.env['GODWIT_SIM_FIRST'] ?? String(randomInt(2 ** 40))

type Result = { singles: number; pairs: number; endings: Record<string, number>; failed: unknown[] }

test(
  'whoever crashes or loses power wherever, all ends in A, C or R',
  async () => {
    const repeat = `npm run sim:ownership -- --walk --pairs 500 --first ${first}`
    console.log(`\n  repeat: ${repeat}`)
    const { singles, pairs, endings, failed } = await simulate<Result>(['--walk', '--pairs', '500', '--first', first])
    assert.equal(failed, [], repeat)
    assert.ok(singles > 200 && pairs >= 500, `${singles} singles, ${pairs} pairs`)
    assert.ok(endings['A']! > 0 && endings['C']! > 0 && endings['R']! > 0, JSON.stringify(endings))
  },
  { ms: 230_000 },
)

test.run()
