// Every fault case there is.
import './streaming.ts'
import './commit.ts'

export { allCases } from './support/case.ts'
