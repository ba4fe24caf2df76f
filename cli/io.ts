// What a command may touch of its process: streams, environment, signals. Tests give one that records.
import { homedir } from 'node:os'
import type { Readable, Writable } from 'node:stream'

export type Io = {
  /** Answers: stdout. */
  out(text: string): void
  /** Progress, notes and errors: stderr. */
  err(text: string): void
  /** Whether stderr is a terminal: a progress bar may rewrite its line. */
  isTty: boolean
  columns(): number
  env: Record<string, string | undefined>
  isRoot: boolean
  homeDir: string
  /** SIGINT and SIGTERM; `count` says how many have come. Returns what takes the handler away again. */
  onInterrupt(handle: (count: number) => void): () => void
  /** Ends the process at once: for a second signal. */
  exitNow(code: number): void
  /** Raw terminal access (console). */
  input: Readable & { isTTY?: boolean; setRawMode?(isRaw: boolean): unknown }
  output: Writable
}

/** Ctrl-C reaches the whole process group: this process directly, and again through bin/launch.js, which passes signals on. That is one wish. */
const ONE_SIGNAL_MS = 300

export function processIo(): Io {
  return {
    out: text => void process.stdout.write(text),
    err: text => void process.stderr.write(text),
    isTty: process.stderr.isTTY === true,
    columns: () => process.stderr.columns ?? 100,
    env: process.env,
    isRoot: process.geteuid?.() === 0,
    homeDir: homedir(),
    onInterrupt: handle => {
      let count = 0
      let lastMs = Number.NEGATIVE_INFINITY
      const onSignal = () => {
        const isSame = performance.now() - lastMs < ONE_SIGNAL_MS
        lastMs = performance.now()
        if (!isSame) handle(++count)
      }
      process.on('SIGINT', onSignal)
      process.on('SIGTERM', onSignal)
      return () => {
        process.off('SIGINT', onSignal)
        process.off('SIGTERM', onSignal)
      }
    },
    exitNow: code => process.exit(code),
    input: process.stdin,
    output: process.stdout,
  }
}

/** Resolves at the first SIGINT or SIGTERM; a second one ends the process with 128 + SIGINT, whatever is still being closed. */
export function untilInterrupted(io: Io): Promise<void> {
  return new Promise(resolve => {
    io.onInterrupt(count => {
      if (count > 1) return io.exitNow(130)
      io.err('stopping; once more to stop at once\n')
      resolve()
    })
  })
}
