#!/usr/bin/env node
// Runs one of the project's own TypeScript files: node bin/run.js test/run.ts [arguments]
import { resolve } from 'node:path'
import { launch } from './launch.js'

await launch(resolve(process.argv[2] ?? ''), process.argv.slice(3))
