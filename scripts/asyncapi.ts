// Writes docs/reference/asyncapi.json: node bin/run.js scripts/asyncapi.ts
// A test compares the committed file with the output of this script.
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { asyncApiText } from '../mqtt/asyncapi.ts'
import { readArguments, runScript } from '../ops/script.ts'

await runScript('Usage: node bin/run.js scripts/asyncapi.ts', () => {
  readArguments({ options: {} })
  const path = fileURLToPath(new URL('../docs/reference/asyncapi.json', import.meta.url))
  writeFileSync(path, asyncApiText())
  console.log(`wrote ${path}`)
})
