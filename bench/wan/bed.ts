// The environment of one run: two network namespaces with a link between them, and processes inside. Enters: a cell.
// Leaves: a bed. Always holds: disposing it ends its processes and deletes the namespaces. Source at a, target at b.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { within as before } from '../../ops/deadline.ts'
import { createNamespace, inNamespace, runInNamespace } from '../../sim-network/namespaces.ts'
import { type PacketLink, startPacketLink } from '../../sim-network/packet-link.ts'
import type { Cell } from './cells.ts'
import type { Congestion } from './variants.ts'

export type BedEnd = 'a' | 'b'
export type Bed = AsyncDisposable & {
  dir: string
  addresses: Record<BedEnd, string>
  namespaces: Record<BedEnd, string>
  readonly link: PacketLink
  /** Restarts the schedule of the link's blackouts. */
  begin(): Promise<void>
  start(words: string[], options: StartOptions): Started
}
type StartOptions = { at: BedEnd; log: string; cwd?: string; env?: Record<string, string>; ipc?: boolean }
export type Started = { child: ChildProcess; pid: number; ended: Promise<void>; stop(): Promise<void> }

const STOP_MS = 8_000
const PREFIX = 'gwb-'
const ALLOWED = '/proc/sys/net/ipv4/tcp_allowed_congestion_control'

/** Allows namespaces to choose this congestion control, which requires an entry in the kernel's list. */
async function allow(congestion: Congestion): Promise<void> {
  const words = (await readFile(ALLOWED, 'utf8')).trim().split(/\s+/)
  if (!words.includes(congestion)) await writeFile(ALLOWED, [...words, congestion].join(' '))
}

export async function layBed(cell: Cell, congestion: Congestion, { dir, seed }: { dir: string; seed: string }): Promise<Bed> {
  await using stack = new AsyncDisposableStack()
  const namespaces = { a: `${PREFIX}${process.pid}-a`, b: `${PREFIX}${process.pid}-b` }
  await allow(congestion)
  for (const name of Object.values(namespaces)) {
    stack.use(await createNamespace(name))
    stack.defer(() => killWithin(name))
    await runInNamespace(name, 'sysctl', '-qw', `net.ipv4.tcp_congestion_control=${congestion}`)
  }
  const { blackouts = [], ...calm } = cell.link
  const link = stack.use(await startPacketLink({ between: [namespaces.a, namespaces.b], up: calm, down: calm, seed }))
  const begin = async () => {
    if (blackouts.length === 0) return
    const { atMs } = await link.stats()
    const shifted = { ...calm, blackouts: blackouts.map(blackout => ({ ...blackout, startMs: blackout.startMs + atMs })) }
    for (const direction of ['up', 'down'] as const) link.change(direction, shifted)
  }
  const held = stack.move()
  const start = (words: string[], options: StartOptions): Started => {
    const started = startAt(namespaces[options.at], words, dir, options)
    held.defer(() => started.stop())
    return started
  }
  return {
    ...{ dir, namespaces, begin, start, link, addresses: { a: link.addresses[0], b: link.addresses[1] } },
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  }
}

/** Ends every process in a namespace: QEMUs outlive their agents. */
function killWithin(namespace: string): void {
  const pids = execFileSync('ip', ['netns', 'pids', namespace], { encoding: 'utf8', timeout: 10_000 })
  for (const pid of pids.split('\n').filter(Boolean)) {
    try {
      process.kill(Number(pid), 'SIGKILL')
    } catch {
      // The process has just ended.
    }
  }
}

/**
 * Removes the namespaces of this benchmark (`pid`), or of dead ones, with all their processes. For a signal, and for a
 * new start.
 */
export function removeRemains(isOurs: (pid: number) => boolean): void {
  const names = execFileSync('ip', ['netns', 'list'], { encoding: 'utf8', timeout: 10_000 }).split('\n')
  for (const name of names.map(line => line.split(' ')[0] ?? '')) {
    const pid = Number(/^gwb-(\d+)-[ab]$/.exec(name)?.[1] ?? 0)
    if (pid === 0 || !isOurs(pid)) continue
    killWithin(name)
    execFileSync('ip', ['netns', 'del', name], { timeout: 10_000 })
  }
}

function startAt(namespace: string, words: string[], dir: string, { log, cwd = dir, env = {}, ipc = false }: StartOptions): Started {
  const [program, ...args] = inNamespace(namespace, words)
  const file = openSync(join(dir, log), 'a')
  const stdio = ['ignore', file, file, ...(ipc ? (['ipc'] as const) : [])] as ('ignore' | 'ipc' | number)[]
  const child = spawn(program!, args, { cwd, stdio, env: { ...process.env, ...env } })
  closeSync(file)
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()).once('error', () => resolve()))
  const stop = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    await before(ended, { ms: STOP_MS, what: `the end of ${words[0]}` }).catch(() => child.kill('SIGKILL'))
    await ended
  }
  return { child, pid: child.pid ?? 0, ended, stop }
}
