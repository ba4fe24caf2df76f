// One test file in a process of its own. Enters: a file, a deadline. Leaves: a verdict with counts, reasons and the
// captured output.
// Always holds: the process, its group and whatever carries its mark in the environment are dead when the verdict is
// given; a file is green only when uvu printed totals, every test in them passed, and nothing was left running. uvu
// alone cannot be trusted with that: a throwing hook, a forgotten run() and an `only` all end in exit code 0.
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'

/** Environment variable that marks every descendant of one test file, also those that left its process group. */
const MARK = 'GODWIT_TEST_RUN'
/**
 * A QEMU gets nothing of its agent's environment but PATH (ops/cage.ts): the mark stands there too, as a folder that
 * does not exist.
 */
const markedPath = (mark: string) => `${process.env['PATH'] ?? '/usr/local/bin:/usr/bin:/bin'}:/nonexistent/${MARK}/${mark}`
const OUTPUT_BYTES_MAX = 4 * 1024 * 1024
/**
 * A file that has printed its totals must end by itself within this: otherwise it left a timer, socket or child open.
 */
const GRACE_AFTER_TOTALS_MS = 10_000
/** Children of a test that has just ended may need a moment to die. */
const GRACE_FOR_CHILDREN_MS = 2_000
/** What is killed ends within this, unless the kernel itself hangs. */
const KILLED_MS = 10_000

type Totals = { total: number; passed: number; skipped: number }
export type Verdict = {
  file: string
  passed: number
  failed: number
  skipped: number
  /** Why the file is red; empty when it is green. */
  reasons: string[]
  /** `suite: title: reason` of each skipped test. */
  skips: string[]
  output: string
  tookMs: number
}

/**
 * What the source of a test file says that its exit code would hide: a suite that never runs, tests shut out by `only`.
 */
export function sourceFaults(source: string): string[] {
  const faults: string[] = []
  for (const [, name] of source.matchAll(/^\s*(?:const|let|var)\s+(\w+)\s*=\s*(?:uvu\.)?suite(?:<[^>]*>)?\(/gm))
    if (!new RegExp(`\\b${name}\\.run\\(\\)`).test(source)) faults.push(`suite '${name}' is never run: put ${name}.run() at the end`)
  if (/\b\w+\.only\(/.test(source)) faults.push('it uses .only, which silently leaves out all other tests')
  return faults
}

/** The last totals that uvu printed, or undefined. uvu's total does not count skipped tests. */
export function readTotals(output: string): Totals | undefined {
  const all = [...output.matchAll(/^\s*Total:\s+(\d+)\n\s*Passed:\s+(\d+)\n\s*Skipped:\s+(\d+)/gm)]
  const [, total, passed, skipped] = all.at(-1) ?? []
  return total === undefined ? undefined : { total: Number(total), passed: Number(passed), skipped: Number(skipped) }
}

/** Counts and reasons from all that is known of a finished file. Pure. */
function judge(run: { output: string; faults: string[]; code: number | null; signal: string | null }): Omit<Verdict, 'file' | 'tookMs'> {
  const reasons = [...run.faults]
  const totals = readTotals(run.output)
  if (!totals) reasons.push('it printed no totals: no suite ran to its end')
  else if (totals.total + totals.skipped === 0) reasons.push('it has no tests')
  else if (totals.passed !== totals.total) reasons.push(`${totals.total - totals.passed} of ${totals.total} tests failed`)
  if (run.code !== 0 && reasons.length === 0) reasons.push(run.signal ? `it was ended by ${run.signal}` : `it exited with code ${run.code}`)
  const { total, passed, skipped } = totals ?? { total: 0, passed: 0, skipped: 0 }
  const skips = [...run.output.matchAll(/^ {2}skipped: (.*)$/gm)].map(match => match[1] ?? '')
  return { passed, failed: Math.max(total - passed, reasons.length > 0 ? 1 : 0), skipped, reasons, skips, output: run.output }
}

/**
 * Live processes that belong to a test file: those of its session, and those that carry its mark. Linux only; elsewhere
 * none.
 */
function descendants(session: number, mark: string): number[] {
  if (process.platform !== 'linux') return []
  const found: number[] = []
  for (const entry of readdirSync('/proc')) {
    const pid = Number(entry)
    if (!Number.isInteger(pid) || pid === process.pid) continue
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      if (fields[0] === 'Z' || fields[0] === 'X') continue
      if (Number(fields[3]) === session || readFileSync(`/proc/${pid}/environ`, 'latin1').includes(mark)) found.push(pid)
    } catch {
      // It ended while we looked, or it is not ours to read.
    }
  }
  return found
}

const nameOf = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0').filter(Boolean).join(' ').slice(0, 120)
  } catch {
    return 'gone'
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // Gone already.
  }
}

/** The processes that are left when none is any more, or after `ms`. */
async function untilGone(session: number, mark: string, ms: number): Promise<number[]> {
  const end = performance.now() + ms
  for (;;) {
    const left = descendants(session, mark)
    if (left.length === 0 || performance.now() >= end) return left
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

/** Waits for what a finished file left running, kills what does not go and waits for its end, and names it. */
async function sweep(session: number, mark: string, graceMs: number): Promise<string[]> {
  const left = await untilGone(session, mark, graceMs)
  const names = left.map(pid => `${nameOf(pid)} (${pid})`)
  for (const pid of left) kill(pid)
  // A kill is an order: the process runs until the kernel has carried it out.
  if (left.length > 0) await untilGone(session, mark, KILLED_MS)
  return names
}

/** Runs one test file to a verdict. `deadlineMs` bounds it as a whole; an aborted signal kills it. Never rejects. */
export async function runFile(
  file: string,
  options: { deadlineMs: number; graceMs?: number; childGraceMs?: number; signal?: AbortSignal; onOutput?: (text: string) => void },
): Promise<Verdict> {
  const started = performance.now()
  const mark = randomBytes(12).toString('hex')
  const faults: string[] = []
  const child = spawn(process.execPath, [file], {
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NO_COLOR: '1', PATH: markedPath(mark), [MARK]: mark },
  })
  const session = child.pid ?? -1
  let output = ''
  let grace: NodeJS.Timeout | undefined
  const stop = (why: string) => {
    faults.push(why)
    for (const pid of descendants(session, mark)) kill(pid)
    child.kill('SIGKILL')
  }
  const deadline = setTimeout(() => stop(`it did not end within ${options.deadlineMs / 1000} s`), options.deadlineMs)
  const onAbort = () => stop('the run was interrupted')
  options.signal?.addEventListener('abort', onAbort, { once: true })
  const take = (text: string) => {
    output = (output + text).slice(-OUTPUT_BYTES_MAX)
    options.onOutput?.(text)
    const graceMs = options.graceMs ?? GRACE_AFTER_TOTALS_MS
    if (!grace && readTotals(output.slice(-4096)))
      grace = setTimeout(() => stop(`it was still running ${graceMs / 1000} s after its last test: something is left open`), graceMs)
  }
  child.stdout.setEncoding('utf8').on('data', take)
  child.stderr.setEncoding('utf8').on('data', take)
  const [code, signal] = await new Promise<[number | null, string | null]>(resolve => {
    child.on('error', error => {
      faults.push(`it could not be started: ${error.message}`)
      resolve([1, null])
    })
    child.on('exit', (code, signal) => resolve([code, signal]))
  })
  clearTimeout(deadline)
  clearTimeout(grace)
  options.signal?.removeEventListener('abort', onAbort)
  const left = await sweep(session, mark, faults.length > 0 ? 0 : (options.childGraceMs ?? GRACE_FOR_CHILDREN_MS))
  if (left.length > 0 && faults.length === 0) faults.push(`it left processes behind: ${left.join('; ')}`)
  await new Promise(resolve => (child.stdout.readableEnded ? resolve(null) : child.once('close', resolve)))
  try {
    faults.push(...sourceFaults(readFileSync(file, 'utf8')))
  } catch {
    // The file cannot be read: its exit code has said so.
  }
  return { file, tookMs: performance.now() - started, ...judge({ output, faults, code, signal }) }
}
