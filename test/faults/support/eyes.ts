// Eyes on every QEMU of a VM, beside its agent's: a second monitor of the same QEMU, so that what runs is known also
// while an agent is dead or stopped.
// Enters: folders of sites. Leaves: what each QEMU answers to query-status now, and whether two ever executed at once.
// Always holds: STOP and RESUME are taken with QEMU's own time stamps (one host, one clock), so not even a millisecond
// of two copies escapes.
import { execFileSync } from 'node:child_process'
import { mkdir, rename, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { connectQmp, type QmpClient } from '../../../edge-node/qmp/client.ts'
import { qmpCommands } from '../../../edge-node/qmp/commands.ts'
import { VM_FILES } from '../../../edge-node/vm/argv.ts'
import { sleep } from '../../../ops/deadline.ts'

const SOCKET = 'eyes.sock'
const LOOK_MS = 20
const ANSWER_MS = 1_500
/** By QEMU's own name: an agent that looks it up in the PATH finds it as well. */
const WRAPPER = fileURLToPath(new URL('../../../.cache/test-faults/bin/qemu-system-x86_64', import.meta.url))

/**
 * A QEMU that has one monitor more when it runs a VM; `more` goes to its command line too. `exec`: the process is QEMU
 * itself.
 */
export async function qemuWithEyes(path = WRAPPER, more = ''): Promise<string> {
  await mkdir(join(path, '..'), { recursive: true })
  const qemu = execFileSync('sh', ['-c', 'command -v qemu-system-x86_64'], { encoding: 'utf8', env: { PATH: withoutEyes() } }).trim()
  const lines = [
    '#!/bin/sh',
    'case " $* " in',
    `*" -pidfile "*) exec ${qemu} "$@" ${more} -qmp unix:${SOCKET},server=on,wait=off ;;`,
    `*) exec ${qemu} "$@" ;;`,
    'esac',
    '',
  ]
  // Written beside and renamed: another test may be starting the old one.
  await writeFile(`${path}.${process.pid}`, lines.join('\n'), { mode: 0o755 })
  await rename(`${path}.${process.pid}`, path)
  return path
}

/** The PATH without our own program of QEMU's name. */
const withoutEyes = () =>
  (process.env['PATH'] ?? '')
    .split(':')
    .filter(folder => folder !== dirname(WRAPPER))
    .join(':')

/** Agents that are started from now on find the QEMU with eyes in their PATH: for those that cannot be told of it. */
export async function putInPath(): Promise<void> {
  await qemuWithEyes()
  process.env['PATH'] = `${dirname(WRAPPER)}:${withoutEyes()}`
}

type Seen = 'gone' | 'mute' | string
type Span = { site: string; fromMs: number; toMs: number }

export type Eyes = Disposable & {
  /**
   * `query-status` of the VM's QEMU at a site: QEMU's word for it; 'gone' without a QEMU, 'mute' when it does not
   * answer.
   */
  status(site: string): Promise<Seen>
  /** The monitor itself, for what only QEMU can be told. */
  qmp(site: string): QmpClient | undefined
  /** When it executed where, in order. */
  spans(): Span[]
  /** Two copies that executed at the same time. */
  overlaps(): string[]
  /** Whether it ever executed at a site since `sinceMs` (Unix ms). */
  ranAt(site: string, sinceMs?: number): boolean
}

/** `lookMs`: how often it looks for a QEMU that has none yet. */
export function openEyes(sites: { name: string; dir: string }[], vm: string, lookMs = LOOK_MS): Eyes {
  const stop = new AbortController()
  const eyes = new Map<string, QmpClient>()
  const spans: Span[] = []
  const open = new Map<string, Span>()
  const begin = (site: string, fromMs: number) => {
    if (open.has(site)) return
    const span = { site, fromMs, toMs: Number.POSITIVE_INFINITY }
    open.set(site, span)
    spans.push(span)
  }
  const end = (site: string, toMs: number) => {
    const span = open.get(site)
    if (span) span.toMs = toMs
    open.delete(site)
  }
  const look = async (site: string, dir: string) => {
    const qmp = await connectQmp({ path: join(dir, 'state', 'vms', vm, VM_FILES.run, SOCKET), timeoutMs: ANSWER_MS, signal: stop.signal })
    qmp.on('STOP', ({ atMs }) => end(site, atMs))
    qmp.on('RESUME', ({ atMs }) => begin(site, atMs))
    const { running } = await qmpCommands(qmp).queryStatus({ timeoutMs: 60_000 })
    if (running) begin(site, Date.now())
    eyes.set(site, qmp)
    await Promise.race([qmp.closed, new Promise(resolve => stop.signal.addEventListener('abort', resolve, { once: true }))])
    eyes.delete(site)
    end(site, Date.now())
    qmp.close()
  }
  const follow = async (site: string, dir: string) => {
    while (!stop.signal.aborted) {
      await look(site, dir).catch(() => {})
      await sleep(lookMs, stop.signal).catch(() => {})
    }
  }
  for (const { name, dir } of sites) void follow(name, dir)
  const until = ({ toMs }: Span) => Math.min(toMs, Date.now())
  return {
    async status(site) {
      const qmp = eyes.get(site)
      if (!qmp) return 'gone'
      return await qmpCommands(qmp)
        .queryStatus({ timeoutMs: ANSWER_MS })
        .then(
          ({ status }) => status,
          () => (eyes.get(site) === qmp && !qmp.ended ? 'mute' : 'gone'),
        )
    },
    qmp: site => eyes.get(site),
    spans: () => spans.map(span => ({ ...span })),
    overlaps: () =>
      spans.flatMap((one, at) =>
        spans
          .slice(at + 1)
          .filter(other => other.site !== one.site && other.fromMs < until(one) && one.fromMs < until(other))
          .map(other => `${one.site} from ${one.fromMs} to ${until(one)}, ${other.site} from ${other.fromMs} to ${until(other)}`),
      ),
    ranAt: (site, sinceMs = 0) => spans.some(span => span.site === site && until(span) > sinceMs),
    [Symbol.dispose]: () => stop.abort(),
  }
}
