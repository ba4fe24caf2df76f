// The simulation finds bugs: each wrong version of the protocol is caught, by a seed and an invariant that the output
// names.
import { assert, suite } from '../support/suite.ts'
import { MUTANTS } from './ownership/mutants.ts'
import { simulate } from './simulate.ts'

const test = suite('simulation/ownership-mutants')

type Caught = { mutant: string; seed?: number; invariant?: string; message?: string }

for (const { name, says } of MUTANTS) {
  test(
    `caught: ${says}`,
    async () => {
      const [caught] = await simulate<Caught[]>(['--mutants', '--mutant', name, '--seeds', '400'])
      assert.type(caught?.seed, 'number', `${name} is not caught`)
      console.log(`  ${name}: seed ${caught?.seed}, ${caught?.message}`)
    },
    { ms: 120_000 },
  )
}

test('a failing seed fails again in the same way', async () => {
  const name = MUTANTS[0]!.name
  const run = () => simulate<Caught[]>(['--mutants', '--mutant', name, '--seeds', '20'])
  assert.equal(await run(), await run())
})

test.run()
