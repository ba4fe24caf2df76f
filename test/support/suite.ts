// uvu with what it lacks: a deadline for every test (a hung test fails, it never hangs the run) and skips that say why.
import { suite as uvuSuite } from 'uvu'

export * as assert from 'uvu/assert'

type Body = () => void | Promise<void>
type TestOptions = { ms?: number; skip?: string | false | undefined }

export type Suite = {
  (name: string, body: Body, options?: TestOptions): void
  run(): void
}

/**
 * A suite whose tests each end within `ms` (default 30 s). Call `.run()` at the end of the file: the runner fails
 * without it.
 */
export function suite(name: string, defaults: { ms?: number } = {}): Suite {
  const inner = uvuSuite(name)
  const test = (title: string, body: Body, { ms = defaults.ms ?? 30_000, skip }: TestOptions = {}) => {
    if (skip) {
      console.log(`  skipped: ${name}: ${title}: ${skip}`)
      inner.skip(title, body)
      return
    }
    inner(title, async () => {
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`'${title}' did not end within ${ms} ms`)), ms)
      })
      try {
        await Promise.race([body(), late])
      } catch (error) {
        throw firstError(error)
      } finally {
        clearTimeout(timer)
      }
    })
  }
  return Object.assign(test, { run: () => inner.run() })
}

/** The error of the test itself, where putting its fixtures away failed as well; the other errors are printed. */
function firstError(error: unknown): unknown {
  if (!(error instanceof SuppressedError)) return error
  console.log('  the fixtures could not be put away either:', error.error)
  return firstError(error.suppressed)
}

/** Runs `body` and gives the error it throws; fails when it does not throw. */
export async function thrown(body: () => unknown): Promise<unknown> {
  try {
    await body()
  } catch (error) {
    return error
  }
  throw new Error('expected an error, but nothing was thrown')
}

/** Runs `body` and gives the code of the GodwitError it throws; fails when it throws none. */
export async function codeOf(body: () => unknown): Promise<string> {
  const error = await thrown(body)
  if (error instanceof Error && 'code' in error) return String(error.code)
  throw error
}
