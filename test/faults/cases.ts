// Runs the fault cases whose numbers stand in GODWIT_FAULT_CASES, one after another. `npm run test:faults` starts it
// for each number by itself.

import { wholeNumber } from '../../ops/script.ts'
import { labMissing } from '../support/lab.ts'
import { suite } from '../support/suite.ts'
import { allCases } from './all.ts'

const test = suite('faults')
const skip = labMissing()
const wanted = (process.env['GODWIT_FAULT_CASES'] ?? '').split(',').map(text => wholeNumber('GODWIT_FAULT_CASES', text, { min: 1 }))

for (const { number, title, body, ms, skip: why } of allCases()) if (wanted.includes(number)) test(title, body, { ms, skip: skip ?? why })

test.run()
