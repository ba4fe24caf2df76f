// The stage of the demo: a gateway and nodes as separate processes, with certificates of a new root, and emulated links
// at the sites. Enters: a folder, names of sites, links. Leaves: a running stage. Always holds: dispose() ends
// everything, also after an error during the build; only loopback is used.
import { type ChildProcess, spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { createWriteStream } from 'node:fs'
import { mkdir, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { guestImage } from '../../guest/image.ts'
import { eventually, within } from '../../ops/deadline.ts'
import { type HttpTarget, requestJson } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import type { LinkModelOptions } from '../../sim-network/link.ts'
import { startUdpProxy, type UdpProxy } from '../../sim-network/udp-proxy.ts'
import type { GatewayStatus } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'

type StageSite = {
  name: string
  /** The emulated link between this site and the gateway; absent: plain loopback. */
  link?: { up: LinkModelOptions; down: LinkModelOptions }
}

export type DemoStage = {
  dir: string
  sites: string[]
  gateway: HttpTarget
  tokenFile: string
  socketOf(site: string): string
  /** For a site with an emulated link. */
  linkOf(site: string): UdpProxy
  dispose(): Promise<void>
}

export type StageOptions = {
  dir: string
  sites: StageSite[]
  /** Added to gateway.yaml. */
  gateway?: Record<string, unknown>
  /** Runs a godwit command in this process and prints it: the demo uses only commands that an operator can type. */
  godwit: (...words: string[]) => Promise<void>
}

const MAIN = fileURLToPath(new URL('../main.ts', import.meta.url))
/** Each node boots a small guest first, to measure its QEMU: slow on a busy host. */
const READY_MS = 150_000
const STOP_MS = 10_000
const HOST = '127.0.0.1'

export async function buildStage({ dir, sites, gateway: more = {}, godwit }: StageOptions): Promise<DemoStage> {
  const ports = { gateway: await freePort(), admin: await freePort() }
  const tokenFile = join(dir, 'admin.token')
  const names = sites.map(({ name }) => name)
  const links = new Map<string, UdpProxy>()
  const undo: (() => Promise<unknown>)[] = []
  const dispose = async () => {
    for (const step of undo.splice(0).reverse()) await step().catch(() => {})
  }
  try {
    await certify(dir, names, godwit)
    for (const { name, link } of sites) {
      if (!link) continue
      const proxy = await startUdpProxy({ listen: { host: HOST, port: 0 }, upstream: { host: HOST, port: ports.gateway }, ...link })
      links.set(name, proxy)
      undo.push(() => proxy.close())
    }
    const gateway = { url: `http://${HOST}:${ports.admin}` }
    undo.push(start(dir, 'gateway', await writeGateway(dir, ports, tokenFile, more)))
    await ready('the gateway', dir, () => requestJson({ ...gateway, path: '/healthz', timeoutMs: 1_000 }))
    const token = await readToken(tokenFile)
    for (const name of names) undo.push(start(dir, name, await writeNode(dir, name, links.get(name)?.address.port ?? ports.gateway)))
    await ready('the sites', dir, async () => {
      const status = await requestJson<GatewayStatus>({ ...gateway, token, path: '/v1/status', timeoutMs: 1_000 })
      const missing = names.filter(name => !status.sites.some(({ site, online }) => site === name && online))
      if (missing.length > 0) throw new Error(`site ${missing.join(', ')} is not online`)
    })
    const linkOf = (site: string) => links.get(site)!
    return { dir, sites: names, gateway: { ...gateway, token }, tokenFile, socketOf: site => join(dir, site, 'node.sock'), linkOf, dispose }
  } catch (error) {
    await dispose()
    throw error
  }
}

/** Creates an offline root and a certificate for each party, as an operator does once. */
async function certify(dir: string, sites: string[], godwit: StageOptions['godwit']): Promise<void> {
  await godwit('root', 'create', '--out', dir)
  for (const name of ['gateway', ...sites]) {
    const role = name === 'gateway' ? 'gateway' : 'site'
    await godwit('keygen', '--role', role, '--id', name, '--out', join(dir, name))
    await godwit('root', 'sign', join(dir, name, `${role}.request`), '--root', join(dir, 'root.key'), '--no-fingerprint')
  }
}

const identity = (dir: string, name: string, role: string) => ({
  keys: join(dir, name, `${role}.keys`),
  certificate: join(dir, name, `${role}.cert`),
  root: join(dir, 'root.pub'),
})

async function writeGateway(
  dir: string,
  ports: { gateway: number; admin: number },
  tokenFile: string,
  more: Record<string, unknown>,
): Promise<string> {
  const path = join(dir, 'gateway.yaml')
  const config = {
    id: 'gateway',
    stateDir: join(dir, 'gateway', 'state'),
    listen: { host: HOST, ports: { quic: ports.gateway, tls: 'off', webtransport: 'off' } },
    admin: { host: HOST, port: ports.admin, tokenFile },
    identity: identity(dir, 'gateway', 'gateway'),
    revocations: join(dir, 'revocations'),
    log: { level: 'info', format: 'text' },
    ...more,
  }
  await writeFile(path, toYaml(config))
  return path
}

async function writeNode(dir: string, site: string, gatewayPort: number): Promise<string> {
  const home = join(dir, site)
  const imagesDir = join(home, 'images')
  await mkdir(imagesDir, { recursive: true })
  const image = guestImage()
  if (!image) throw new GodwitError('SETUP_NEEDED', 'the guest image is missing', { hint: 'run node scripts/setup.js' })
  await symlink(image.kernel, join(imagesDir, 'vmlinuz'))
  await symlink(image.initrd, join(imagesDir, 'initrd.img'))
  const path = join(home, 'node.yaml')
  const config = {
    site,
    stateDir: join(home, 'state'),
    runDir: home,
    imagesDir,
    gateway: { id: 'gateway', host: HOST, ports: { quic: gatewayPort, tls: 'off', webtransport: 'off' } },
    transport: 'quic',
    identity: identity(dir, site, 'site'),
    api: { socket: join(home, 'node.sock') },
    log: { level: 'info', format: 'text' },
  }
  await writeFile(path, toYaml(config))
  return path
}

/** Starts `godwit gateway` or `godwit node`; returns the function that stops it (SIGTERM, then SIGKILL). */
function start(dir: string, name: string, config: string): () => Promise<void> {
  const log = createWriteStream(join(dir, `${name}.log`))
  const child: ChildProcess = spawn(process.execPath, [MAIN, name === 'gateway' ? 'gateway' : 'node', '--config', config], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  child.stdout?.pipe(log, { end: false })
  child.stderr?.pipe(log, { end: false })
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  return async () => {
    child.kill('SIGTERM')
    await within(ended, { ms: STOP_MS, what: `the end of ${name}` }).catch(() => child.kill('SIGKILL'))
    await ended
    log.end()
  }
}

async function ready(what: string, dir: string, probe: () => Promise<unknown>): Promise<void> {
  let last: unknown
  const attempt = async () => {
    try {
      await probe()
      return true
    } catch (error) {
      last = error
      return undefined
    }
  }
  try {
    await eventually(attempt, { ms: READY_MS, what, everyMs: 100 })
  } catch (error) {
    throw new GodwitError(
      'TIMEOUT',
      `${what} did not become ready within ${READY_MS / 1000} s: ${last instanceof Error ? last.message : last}`,
      {
        cause: error,
        hint: `see the logs in ${dir}`,
      },
    )
  }
}

const readToken = async (path: string): Promise<string> => {
  const { readFile } = await import('node:fs/promises')
  return (await readFile(path, 'utf8')).trim()
}

/** A port that is currently free for both TCP and UDP. */
export async function freePort(): Promise<number> {
  for (;;) {
    const tcp = createServer()
    const port = await new Promise<number>((resolve, reject) => {
      tcp.once('error', reject)
      tcp.listen(0, HOST, () => resolve((tcp.address() as { port: number }).port))
    })
    const udp = createSocket('udp4')
    const isFree = await new Promise<boolean>(resolve => {
      udp.once('error', () => resolve(false))
      udp.bind(port, HOST, () => resolve(true))
    })
    await Promise.all([new Promise(resolve => tcp.close(resolve)), new Promise<void>(resolve => udp.close(() => resolve()))])
    if (isFree) return port
  }
}
