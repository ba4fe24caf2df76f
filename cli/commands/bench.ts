// godwit bench: the same as npm run bench, without the set-up.
import { fileURLToPath } from 'node:url'
import { command } from '../command.ts'

export const bench = command({
  name: 'bench',
  summary: 'measure the pipeline, the relay and the transports on this machine',
  details: 'Passes all arguments to bench/run.ts. npm run bench also does the set-up.',
  isPassThrough: true,
  examples: ['npm run bench', 'godwit bench'],
  run: async ({ args }) => {
    const { spawn } = await import('node:child_process')
    const child = spawn(process.execPath, [fileURLToPath(new URL('../../bench/run.ts', import.meta.url)), ...args], { stdio: 'inherit' })
    return await new Promise(resolve => child.once('exit', code => resolve(code ?? 1)))
  },
})
