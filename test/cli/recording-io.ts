// An Io that records, with a home of its own.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import type { Io } from '../../cli/io.ts'
import { run } from '../../cli/run.ts'

type RecordingIo = Io & { stdout: string; stderr: string; interrupt(): void; exits: number[] }

export function recordingIo({
  env = {},
  isTty = false,
  isOutTty = false,
  columns = 100,
}: {
  env?: Record<string, string>
  isTty?: boolean
  isOutTty?: boolean
  columns?: number
} = {}): RecordingIo {
  const handlers = new Set<(count: number) => void>()
  let count = 0
  const io: RecordingIo = {
    stdout: '',
    stderr: '',
    exits: [],
    out: text => {
      io.stdout += text
    },
    err: text => {
      io.stderr += text
    },
    isTty,
    columns: () => columns,
    env,
    isRoot: false,
    homeDir: '/nonexistent/home',
    onInterrupt: handle => {
      handlers.add(handle)
      return () => handlers.delete(handle)
    },
    interrupt: () => {
      count++
      for (const handle of handlers) handle(count)
    },
    exitNow: code => void io.exits.push(code),
    input: new PassThrough(),
    output: Object.assign(new PassThrough(), { isTTY: isOutTty }),
  }
  return io
}

/** A folder that is GODWIT_HOME for one test, and a godwit that lives in it. */
export async function home(env: Record<string, string> = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-cli-'))
  const godwit = async (...words: string[]) => {
    const io = recordingIo({ env: { GODWIT_HOME: folder, ...env } })
    const code = await run(words, io)
    return { code, out: io.stdout, err: io.stderr, json: () => JSON.parse(io.stdout) }
  }
  return {
    folder,
    path: (...parts: string[]) => join(folder, ...parts),
    env: { GODWIT_HOME: folder, ...env },
    godwit,
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}
