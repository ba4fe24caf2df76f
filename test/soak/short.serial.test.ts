// A short soak in `npm test`: two VMs, a few steps, new faults in each run. `npm run soak` is the long form.

import { numberFromEnvironment } from '../../ops/script.ts'
import { labMissing } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'
import { FAULTS } from './faults.ts'
import { soak } from './run.ts'

const STEPS = 3
/** It alone takes a minute. */
const LONG = 'the link is cut for longer than the patience'

const test = suite('soak: short', { ms: 230_000 })

test(
  'two VMs move at random while faults are injected: one copy each, sound memory, nothing left',
  async () => {
    const seed = numberFromEnvironment(process.env, 'GODWIT_SEED', Math.floor(Math.random() * 1e9))
    console.log(`again: GODWIT_SEED=${seed} node bin/run.js test/run.ts soak/short`)
    const only = FAULTS.map(({ name }) => name).filter(name => name !== LONG)
    const verdict = await soak({ seed, vms: 2, minutes: 1, steps: STEPS, only, print: line => console.log(line) })
    assert.is(verdict.failed, 0)
    assert.ok(verdict.steps > 0 && verdict.migrations > 0)
    assert.equal(verdict.grown, [])
  },
  { skip: labMissing() },
)

test.run()
