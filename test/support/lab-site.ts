// One site of a lab: its folder, its keys and certificate, its agent in this process or in one of its own.
import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Root } from '../../crypto/certificate.ts'
import { encodeKeys } from '../../crypto/identity.ts'
import { type Node, type NodeOptions, startNode } from '../../edge-node/agent.ts'
import { NodeConfig } from '../../edge-node/config.ts'
import { eventually, within } from '../../ops/deadline.ts'
import { armor } from '../../ops/files.ts'
import { requestJson } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import type { Engine } from '../../transport/types.ts'
import type { Log } from '../../wire/log.ts'
import { identityOf } from '../gateway/fixture.ts'
import { guestImage } from './guest.ts'

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url))
/** Of a hang only: agents whose processor is busy with other work have taken 25 s to start. */
const ONLINE_MS = 60_000

export type SiteOptions = {
  /** An agent of its own process (`godwit node`); not with the memory engine. */
  isProcess?: boolean
  /**
   * An agent of its own process as well, but this program in place of `godwit node`: its first argument is the
   * configuration file, and it has an IPC channel.
   */
  program?: string[]
  /** Where it finds the gateway, when not at the gateway's own port. */
  gatewayPort?: number
  /** Further fields of its configuration, which may name files in the site's folder. */
  config?: Record<string, unknown> | ((dir: string) => Record<string, unknown>)
  /** Another version's cli/main.ts (isProcess). */
  main?: string
  isStopped?: boolean
  /** Another root than the lab's certifies it; what it believes itself stays the lab's. */
  certifiedBy?: Root
  /** Unix seconds. */
  notAfter?: number
  qemuBinary?: string
  /** What its QEMU says it knows, of what it knows. */
  machines?: (known: string[]) => string[]
  /** Without kernel and initrd. */
  isEmpty?: boolean
  memoryReserve?: string
  /** Shorter waits (agents in this process). */
  waits?: NodeOptions['waits']
}

export type LabSite = {
  readonly name: string
  readonly dir: string
  readonly imagesDir: string
  readonly socketPath: string
  /** The agent in this process. */
  readonly node: Node
  /** The agent's own process. */
  readonly pid: number
  /** Called with the loaded, still paused VM before LOADED is sent (in-process agents). */
  onLoaded: NodeOptions['onLoaded']
  /** The same, with what else a test wants of it; undefined while there is none. */
  readonly process: ChildProcess | undefined
  /** Starts the agent and waits until the gateway knows it. */
  start(): Promise<void>
  /** Ends the agent in order; its VMs go on. */
  stop(): Promise<void>
  /** Resolves when the agent's process has ended by itself (see crashAt). */
  died(): Promise<void>
  /** kill -9 of the agent's process. */
  kill(): Promise<void>
  /** The agent's API on its socket. */
  api<T>(method: string, path: string, body?: unknown): Promise<T>
}

type Surroundings = {
  name: string
  dir: string
  root: Root
  abilities: string
  engine: Engine
  port: 'quic' | 'tls' | 'webtransport'
  gatewayPort: number
  log: Log
}

type Agent = { node?: Node; child?: ChildProcess; stop(): Promise<void> }

export async function createSite(around: Surroundings, options: SiteOptions): Promise<LabSite> {
  const { name, dir, log, engine } = around
  const config = await furnish(around, options)
  const { qemuBinary, waits } = options
  let agent: Agent | undefined
  const socketPath = join(dir, 'node.sock')
  const api = <T>(method: string, path: string, body?: unknown) =>
    requestJson<T>({ socketPath, method, path, timeoutMs: 60_000, ...(body === undefined ? {} : { body }) })
  const start = async (): Promise<Agent> => {
    if (options.isProcess || options.program) return await startProcess(dir, config, options)
    const onLoaded: NodeOptions['onLoaded'] = async vm => site.onLoaded?.(vm)
    const child = log.child({ who: name })
    const given = { config: NodeConfig.parse(config), engines: [engine], version: 'lab' }
    const node = await startNode({ ...given, log: child, qemuBinary, onLoaded, waits })
    return { node, stop: () => node.close() }
  }
  const isOnline = async () => {
    const { gateway } = await api<{ gateway: { state: string } }>('GET', '/v1/host').catch(() => ({ gateway: { state: 'no answer' } }))
    return gateway.state === 'online' ? true : undefined
  }
  const site: LabSite = {
    ...{ name, dir, socketPath, api, imagesDir: join(dir, 'images') },
    onLoaded: undefined,
    get process() {
      return agent?.child
    },
    get node() {
      if (!agent?.node) throw new Error(`site ${name} has no agent in this process`)
      return agent.node
    },
    get pid() {
      if (!agent?.child?.pid) throw new Error(`site ${name} has no agent of its own process`)
      return agent.child.pid
    },
    async start() {
      agent = await start()
      await eventually(isOnline, { ms: ONLINE_MS, what: `site ${name} online` })
    },
    async stop() {
      const last = agent
      agent = undefined
      await last?.stop()
    },
    async died() {
      const child = agent?.child
      if (!child) throw new Error(`site ${name} has no agent of its own process`)
      const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
      if (child.exitCode === null && child.signalCode === null) await within(ended, { ms: 60_000, what: `the end of the agent of ${name}` })
      agent = undefined
    },
    async kill() {
      const child = agent?.child
      agent = undefined
      if (!child) throw new Error(`site ${name} has no agent of its own process`)
      const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
      child.kill('SIGKILL')
      await within(ended, { ms: 5_000, what: `the end of the agent of ${name}` })
    },
  }
  return site
}

/** The site's folder as an operator would lay it out; gives its configuration. */
async function furnish(around: Surroundings, options: SiteOptions): Promise<Record<string, unknown>> {
  const { name, dir, root, port } = around
  const gatewayPort = options.gatewayPort ?? around.gatewayPort
  const path = (...parts: string[]) => join(dir, ...parts)
  await mkdir(path('images'), { recursive: true })
  await mkdir(path('state'), { mode: 0o700 })
  const identity = identityOf(
    options.certifiedBy ?? root,
    'site',
    name,
    options.notAfter === undefined ? {} : { notAfter: options.notAfter },
  )
  await writeFile(path('site.keys'), encodeKeys(identity.keys), { mode: 0o600 })
  await writeFile(path('site.cert'), armor('CERTIFICATE', identity.certificate))
  await writeFile(path('root.pub'), armor('ROOT PUBLIC KEY', root.signPublic))
  const image = guestImage()!
  if (options.isEmpty !== true) {
    await symlink(image.kernel, path('images', 'vmlinuz'))
    await symlink(image.initrd, path('images', 'initrd.img'))
  }
  if (options.qemuBinary === undefined) await writeFile(path('state', 'qemu-abilities.json'), narrowed(around.abilities, options.machines))
  const ports = { quic: 'off', tls: 'off', webtransport: 'off', [port]: gatewayPort }
  return {
    site: name,
    ...{ stateDir: path('state'), runDir: dir, imagesDir: path('images') },
    gateway: { id: 'gateway', host: '127.0.0.1', ports },
    transport: port,
    identity: { keys: path('site.keys'), certificate: path('site.cert'), root: path('root.pub') },
    api: { socket: path('node.sock') },
    log: { level: 'info', format: 'text' },
    limits: { memoryReserve: options.memoryReserve ?? '64MiB' },
    ...(typeof options.config === 'function' ? options.config(dir) : options.config),
  }
}

function narrowed(text: string, machines: SiteOptions['machines']): string {
  if (!machines) return text
  const cache = JSON.parse(text) as { abilities: { machines: string[] } }
  cache.abilities.machines = machines(cache.abilities.machines)
  return JSON.stringify(cache)
}

async function startProcess(dir: string, config: Record<string, unknown>, { program, main = MAIN }: SiteOptions): Promise<Agent> {
  const file = join(dir, 'node.yaml')
  await writeFile(file, toYaml(config))
  if (program) return spawnNode([program[0]!, file, ...program.slice(1)], join(dir, 'node.log'), true)
  return spawnNode([main, 'node', '--config', file], join(dir, 'node.log'))
}

/** A godwit command as a process; SIGTERM ends it, SIGKILL when it does not end in time. */
export const spawnGodwit = (words: string[], logFile: string): Agent & { child: ChildProcess } => spawnNode([MAIN, ...words], logFile)

function spawnNode(words: string[], logFile: string, hasChannel = false): Agent & { child: ChildProcess } {
  const log = createWriteStream(logFile, { flags: 'a' })
  const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'pipe', ...(hasChannel ? (['ipc'] as const) : [])] })
  child.stdout!.pipe(log, { end: false })
  child.stderr!.pipe(log, { end: false })
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  child.once('exit', (code, signal) => log.end(`--- ended: ${signal ?? `code ${code}`}\n`))
  const stop = async () => {
    child.kill('SIGTERM')
    await within(ended, { ms: 10_000, what: `the end of ${words[1]}` }).catch(() => child.kill('SIGKILL'))
    await ended
  }
  return { child, stop }
}

/** The end of a process's log, for messages. */
export const logTailOf = async (dir: string): Promise<string> =>
  (await readFile(join(dir, 'node.log'), 'utf8').catch(() => '')).slice(-3000)
