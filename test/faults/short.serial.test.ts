// Four fault cases in `npm test`, one for each way a migration can end: at the source, at the target, reclaimed, and
// with a guest that has powered off. `npm run test:faults` tries all.
import { labMissing } from '../support/lab.ts'
import { suite } from '../support/suite.ts'
import { allCases } from './all.ts'

const SHORT = [28, 31, 36, 57]

const test = suite('faults: short', { ms: 150_000 })
const skip = labMissing()

for (const number of SHORT) {
  const { title, body } = allCases().find(one => one.number === number)!
  test(title, body, { skip })
}

test.run()
