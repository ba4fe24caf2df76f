// Entry point of the `godwit` command (bin/godwit.js starts it).
import { processIo } from './io.ts'
import { run } from './run.ts'

// `godwit status | head`: the reader went away, which is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})

process.exitCode = await run(process.argv.slice(2), processIo())
