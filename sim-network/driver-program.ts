// The native link driver as a program on disk. Enters: its C sources beside this file, a C compiler. Leaves: the path
// of the program, compiled at the first request. Always holds: the program matches the current sources (its name
// contains their hash); it is written completely and then renamed.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { access, mkdir, readFile, rename, rm } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { GodwitError } from '../wire/errors.ts'

const execute = promisify(execFile)
const here = fileURLToPath(new URL('./native/', import.meta.url))
const folder = fileURLToPath(new URL('../.cache/link-driver/', import.meta.url))
const COMPILERS = ['cc', 'gcc', 'clang']
/** No contraction into fused multiply-add: the arithmetic must match JavaScript's. */
const FLAGS = ['-O2', '-Wall', '-Wextra', '-ffp-contract=off']
const COMPILE_MS = 60_000

/** Path of the program. SETUP_NEEDED without a C compiler. */
export async function driverProgram(): Promise<string> {
  const sources = await Promise.all(['link-driver.c', 'link-model.h'].map(name => readFile(`${here}${name}`)))
  const hash = createHash('sha256').update(FLAGS.join(' '))
  for (const source of sources) hash.update(source)
  const path = `${folder}link-driver-${hash.digest('hex').slice(0, 16)}`
  const isThere = await access(path).then(
    () => true,
    () => false,
  )
  if (!isThere) await compile(path)
  return path
}

async function compile(path: string): Promise<void> {
  await mkdir(folder, { recursive: true })
  const draft = `${path}.${process.pid}`
  for (const compiler of COMPILERS) {
    try {
      await execute(compiler, [...FLAGS, '-o', draft, `${here}link-driver.c`, '-lm'], { timeout: COMPILE_MS })
      await rename(draft, path)
      return
    } catch (error) {
      await rm(draft, { force: true })
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        throw new Error(`${compiler} does not compile the link driver`, { cause: error })
    }
  }
  throw new GodwitError('SETUP_NEEDED', 'the packet-level link needs a C compiler, once', {
    hint: 'install gcc (Debian: apt-get install gcc)',
  })
}
