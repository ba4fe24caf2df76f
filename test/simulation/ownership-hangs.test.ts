// What hangs at one point of a migration, and listens to nothing, is ended by the watchdog alone: with it all ends in
// A, C or R, and the VM can be moved on; without it the same hang is a breach.
import { assert, suite } from '../support/suite.ts'
import { HANGS } from './ownership/hangs.ts'
import { simulate } from './simulate.ts'

const test = suite('simulation/ownership-hangs')

type Result = { seeds: number; failed: { seed: number; message: string }[] }
type Caught = { seed?: number; message?: string }

for (const { name, says } of HANGS)
  test(
    `ended by the watchdog: a hang in ${says}`,
    async () => {
      const [caught] = await simulate<Caught[]>(['--mutants', '--mutant', `${name}-unwatched`, '--seeds', '40'])
      assert.match(caught?.message ?? 'nothing', /^END: .*(busy|still has)/, 'without the watchdog it is stuck')
      const { seeds, failed } = await simulate<Result>(['--mutant', name, '--first', String(caught?.seed), '--seeds', '2'])
      assert.equal(failed, [], `replay with --mutant ${name} --seed N`)
      assert.is(seeds, 2)
    },
    { ms: 120_000 },
  )

test.run()
