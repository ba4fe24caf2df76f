// Three fault cases in `npm test`, one for each way a migration can end: at the source, at the target, reclaimed. `npm run test:faults` tries all.
import { labMissing } from '../support/lab.ts'
import { suite } from '../support/suite.ts'
import { allCases } from './all.ts'

const SHORT = [28, 31, 36]

const test = suite('faults: short', { ms: 75_000 })
const skip = labMissing()

for (const { number, title, body } of allCases()) if (SHORT.includes(number)) test(title, body, { skip })

test.run()
