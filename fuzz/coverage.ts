// Block coverage of Godwit's own code for an execution, with counts (to a power of two): V8's own coverage through the
// inspector, in process. Enters: executions between two calls of fresh(). Leaves: features (script, block, count) that
// no earlier execution had.
import { Session } from 'node:inspector'

export type CodeCoverage = {
  /** New features of the executions since the last call. */
  fresh(): string[]
  /** Marks them as known. */
  know(features: readonly string[]): void
  readonly features: number
  close(): void
}

type Script = { url: string; functions: { ranges: { startOffset: number; endOffset: number; count: number }[] }[] }

export function startCoverage(isOurs: (url: string) => boolean): CodeCoverage {
  const session = new Session()
  session.connect()
  const post = <T>(method: string, params?: object): T => {
    let result: T | undefined
    // Answers arrive before post() returns: the session is on this thread.
    session.post(method, params, (error: Error | null, value?: unknown) => {
      if (error) throw error
      result = value as T
    })
    return result as T
  }
  post('Profiler.enable')
  post('Profiler.startPreciseCoverage', { callCount: true, detailed: true })
  const seen = new Set<string>()
  return {
    fresh() {
      const found: string[] = []
      const { result } = post<{ result: Script[] }>('Profiler.takePreciseCoverage')
      for (const { url, functions } of result) {
        if (!isOurs(url)) continue
        for (const { ranges } of functions) {
          for (const { startOffset, endOffset, count } of ranges) {
            // Zero counts too: a block that ran as often as its surrounding block is not listed, so a path shows in the
            // blocks that did not run.
            const feature = `${url}:${startOffset}:${endOffset}:${Math.min(8, 32 - Math.clz32(count))}`
            if (!seen.has(feature)) found.push(feature)
          }
        }
      }
      return found
    },
    know(features) {
      for (const feature of features) seen.add(feature)
    },
    get features() {
      return seen.size
    },
    close() {
      session.disconnect()
    },
  }
}
