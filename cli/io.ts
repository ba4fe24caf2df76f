// The parts of its process that a command may use: streams, environment, signals. Tests pass a recording one.
import { homedir } from 'node:os'
import type { Readable, Writable } from 'node:stream'

export type Io = {
  /** Results: stdout. */
  out(text: string): void
  /** Progress, notes and errors: stderr. */
  err(text: string): void
  /** Whether stderr is a terminal: a progress bar may rewrite its line. */
  isTty: boolean
  columns(): number
  env: Record<string, string | undefined>
  isRoot: boolean
  homeDir: string
  /** SIGINT and SIGTERM; `count` is their number so far. Returns the function that removes the handler. */
  onInterrupt(handle: (count: number) => void): () => void
  /** Ends the process at once: for a second signal. */
  exitNow(code: number): void
  /** Raw terminal access (console). */
  input: Readable & { isTTY?: boolean; setRawMode?(isRaw: boolean): unknown }
  output: Writable & { isTTY?: boolean }
}

/**
 * Ctrl-C reaches this process twice: directly (process group), and through bin/launch.js, which forwards signals. Both
 * count as one.
 */
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

/**
 * Resolves at the first SIGINT or SIGTERM; a second one ends the process with 128 + SIGINT, even while it is still
 * closing.
 */
function untilInterrupted(io: Io): Promise<void> {
  return new Promise(resolve => {
    io.onInterrupt(count => {
      if (count > 1) return io.exitNow(130)
      io.err('stopping; press Ctrl-C again to stop at once\n')
      resolve()
    })
  })
}

const STARTING_MS = 2_000

/**
 * Starts something that runs until SIGINT or SIGTERM, and closes it. A signal during the start counts too: the process
 * closes after the start, or ends with 130 if the start takes longer than 2 s (a start may be interrupted at any
 * moment, as by a crash). If it fails by itself (`broken`), it is closed too, and its error is thrown.
 */
export async function runUntilInterrupted(
  io: Io,
  start: () => Promise<{ close(): Promise<void>; broken?: Promise<Error> }>,
): Promise<void> {
  const interrupted = untilInterrupted(io)
  const starting = start()
  let timer: NodeJS.Timeout | undefined
  void interrupted.then(() => {
    timer = setTimeout(() => io.exitNow(130), STARTING_MS)
  })
  const running = await starting
  const error = await Promise.race([interrupted, ...(running.broken ? [running.broken] : [])])
  clearTimeout(timer)
  await running.close()
  if (error) throw error
}
