// The short form of npm run test:churn: a few migrations cancelled and failed at random moments leave nothing behind.
import { randomInt } from 'node:crypto'
import { numberFromEnvironment } from '../../ops/script.ts'
import { labMissing } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'
import { churn } from './churn.ts'

const test = suite('churn: short', { ms: 230_000 })

test(
  'migrations cancelled and failed at random moments: every VM runs once and whole, nothing is left',
  async () => {
    const seed = numberFromEnvironment(process.env, 'GODWIT_SEED', randomInt(2 ** 40))
    console.log(`again: GODWIT_SEED=${seed} node bin/run.js test/run.ts churn/short`)
    const verdict = await churn({ cancelled: 6, failed: 6, vms: 2, seed, forMs: 120_000, print: line => console.log(line) })
    const { problems, left, cancelled, failed } = verdict
    assert.equal({ problems, left }, { problems: [], left: [] })
    assert.ok(cancelled + failed > 0, JSON.stringify(verdict))
  },
  { skip: labMissing() },
)

test.run()
