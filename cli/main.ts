// Entry point of the `godwit` command (bin/godwit.js starts it).
import { processIo } from './io.ts'
import { run } from './run.ts'

// `godwit status | head`: the reader closed the pipe, which is not an error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})

// `ps` shows a command line to every user of this machine while the process runs (bin/launch.js does the same for
// itself).
if (process.argv.some(word => /^--token(=|$)/.test(word))) process.title = 'godwit'

process.exitCode = await run(process.argv.slice(2), processIo())
