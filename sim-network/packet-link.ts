// An emulated link between two network namespaces for any protocol. Enters: namespaces, options of both directions.
// Leaves: two TUN devices with addresses; the model's rate, delay, loss and queue apply to their packets. A native
// process (native/link-driver.c) with the same model as link.ts does the work. Always holds: the devices are removed
// when the link is closed or this process dies; traffic stays within the two namespaces.
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { within as before } from '../ops/deadline.ts'
import { GodwitError } from '../wire/errors.ts'
import { driverProgram } from './driver-program.ts'
import type { LinkCounters, LinkModelOptions } from './link.ts'
import { linkWords } from './link-words.ts'
import { ip, namespacePath, needNamespaces, runInNamespace } from './namespaces.ts'

export type PacketLinkOptions = {
  /** Names of the existing namespaces at the ends a and b. */
  between: readonly [a: string, b: string]
  /** From a to b. */
  up: LinkModelOptions
  /** From b to a. */
  down: LinkModelOptions
  seed?: number | string
  /** IPv4 addresses of the ends. Default 10.77.0.1 and 10.77.0.2 of 10.77.0.0/30. */
  addresses?: readonly [a: string, b: string]
  /** Name of both devices. Default godwit0. */
  device?: string
  /** Of both devices. Default 1500. */
  mtuBytes?: number
}

export type DirectionStats = {
  link: LinkCounters
  /** Packets by the delay of their release, in ms: below 0.1, 0.2, 0.5, 1, 2, 5, 10, and more. */
  lateCount: number[]
  lateMsMax: number
  writeErrors: number
}
/** `ab`: packets from a to b. Sizes are those of IP packets. */
export type PacketLinkStats = { atMs: number; ab: DirectionStats; ba: DirectionStats }

export type PacketLink = AsyncDisposable & {
  readonly addresses: readonly [a: string, b: string]
  /** Whether the driver runs before all other processes (SCHED_FIFO). */
  readonly isRealTime: boolean
  /** Rejects when the driver ends by itself. */
  readonly failed: Promise<never>
  stats(): Promise<PacketLinkStats>
  /** New conditions of one direction from now on: whole options. */
  change(direction: 'up' | 'down', options: LinkModelOptions): void
  /** Cuts both directions, or restores them. */
  cut(isCut: boolean): void
  /** Ends the link; returns the last counters. */
  close(): Promise<PacketLinkStats>
}

const ANSWER_MS = 5_000
const PACKETS_WAITING = 10_000
const STDERR_MAX = 2_000

type Answer = { kind: 'ready'; isRealTime: boolean } | ({ kind: 'stats' | 'end' } & PacketLinkStats)

/**
 * Creates the link. SETUP_NEEDED without root, TUN, iproute2 or a compiler, CONFIG_INVALID if a namespace does not
 * exist.
 */
export async function startPacketLink(options: PacketLinkOptions): Promise<PacketLink> {
  needNamespaces()
  const { between, up, down, seed = 1, addresses = ['10.77.0.1', '10.77.0.2'], device = 'godwit0', mtuBytes = 1500 } = options
  const description = [linkWords(up, `${seed}/up`), linkWords(down, `${seed}/down`), `${mtuBytes}\n`].join('')
  const ends = between.flatMap(name => [namespacePath(name), device])
  const child = spawn(await driverProgram(), ['run', ...ends], { stdio: ['pipe', 'pipe', 'pipe'] })
  const driver = converse(child)
  try {
    child.stdin.write(description)
    const ready = await driver.answer('ready')
    await Promise.all(between.map((name, at) => furnish(name, device, mtuBytes, addresses[at]!, addresses[1 - at]!)))
    return linkOf(driver, child.stdin, { addresses, seed, isRealTime: ready.isRealTime })
  } catch (error) {
    child.kill('SIGKILL')
    throw error
  }
}

/** IPv6 stays off: its announcements would be counted as traffic. */
async function furnish(name: string, device: string, mtuBytes: number, own: string, peer: string): Promise<void> {
  await runInNamespace(name, 'sh', '-c', `echo 1 >/proc/sys/net/ipv6/conf/${device}/disable_ipv6 2>/dev/null || true`)
  await ip('-n', name, 'addr', 'add', own, 'peer', peer, 'dev', device)
  await ip('-n', name, 'link', 'set', device, 'mtu', String(mtuBytes), 'txqueuelen', String(PACKETS_WAITING), 'up')
}

type Driver = {
  failed: Promise<never>
  ended: Promise<void>
  answer<K extends Answer['kind']>(kind: K): Promise<Extract<Answer, { kind: K }>>
}

/** Reads the driver's answers: one JSON object a line. */
function converse(child: ChildProcessByStdio<Writable, Readable, Readable>): Driver {
  const waiting: { kind: Answer['kind']; resolve: (answer: Answer) => void; reject: (error: unknown) => void }[] = []
  let text = ''
  let complaint = ''
  let error: GodwitError | undefined
  child.stdin.on('error', () => {})
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    complaint = (complaint + chunk).slice(-STDERR_MAX)
  })
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    const lines = (text + chunk).split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) {
      const answer = JSON.parse(line) as Answer
      const at = waiting.findIndex(({ kind }) => kind === answer.kind)
      if (at >= 0) waiting.splice(at, 1)[0]!.resolve(answer)
    }
  })
  let end = () => {}
  const ended = new Promise<void>(resolve => {
    end = resolve
  })
  const failed = new Promise<never>((_, reject) => {
    const close = (why: string) => {
      error = new GodwitError('CONFIG_INVALID', `the link driver ended: ${complaint.trim().replace(/^godwit-link: /, '') || why}`)
      for (const { reject } of waiting.splice(0)) reject(error)
      reject(error)
      end()
    }
    child.once('error', cause => close(cause.message))
    child.once('close', (code, signal) => close(`${signal ?? `exit code ${code}`}`))
  })
  failed.catch(() => {})
  const answer = <K extends Answer['kind']>(kind: K) =>
    before(
      new Promise<Extract<Answer, { kind: K }>>((resolve, reject) => {
        if (error) return reject(error)
        waiting.push({ kind, resolve: resolve as (answer: Answer) => void, reject })
      }),
      { ms: ANSWER_MS, what: 'the link driver' },
    )
  return { failed, ended, answer }
}

type Facts = { addresses: readonly [string, string]; seed: number | string; isRealTime: boolean }

function linkOf({ failed, ended, answer }: Driver, stdin: Writable, { addresses, seed, isRealTime }: Facts): PacketLink {
  let closing: Promise<PacketLinkStats> | undefined
  const ask = async (kind: 'stats' | 'end') => {
    const coming = answer(kind)
    if (kind === 'stats') stdin.write('stats\n')
    else stdin.end()
    const { kind: _, ...stats } = await coming
    return stats
  }
  const link: PacketLink = {
    ...{ addresses, isRealTime, failed },
    stats: () => ask('stats'),
    change: (direction, options) => {
      const [name, from] = direction === 'up' ? ['ab', 'up'] : ['ba', 'down']
      stdin.write(`change ${name} 1 ${linkWords(options, `${seed}/${from}`)}`)
    },
    cut: isCut => void stdin.write(`cut ${isCut ? 1 : 0}\n`),
    close: () => {
      closing ??= ask('end').finally(() => ended)
      return closing
    },
    [Symbol.asyncDispose]: async () => void (await link.close().catch(() => {})),
  }
  return link
}
