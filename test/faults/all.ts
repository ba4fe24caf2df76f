// Every fault case there is.
import './agents.ts'
import './commit.ts'
import './guest.ts'
import './links.ts'
import './streaming.ts'
import './link.ts'

export { allCases } from './support/case.ts'
