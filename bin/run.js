#!/usr/bin/env node
// Runs a TypeScript file of this project: node bin/run.js test/run.ts [arguments]
import { resolve } from 'node:path'
import { launch } from './launch.js'

await launch(resolve(process.argv[2] ?? ''), process.argv.slice(3))
