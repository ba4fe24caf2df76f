// Writes docs/asyncapi.json: node bin/run.js scripts/asyncapi.ts
// A test holds the committed file equal to what this would write.
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { asyncApiText } from '../gateway/control/mqtt/asyncapi.ts'

const path = fileURLToPath(new URL('../docs/asyncapi.json', import.meta.url))
writeFileSync(path, asyncApiText())
console.log(`wrote ${path}`)
