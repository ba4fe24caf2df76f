// Godwit as an operator runs it: a gateway and a node in b's namespace, a node in a's. The VM's data crosses the link
// once, encrypted end to end and on each hop, through the relay. Enters: a bed. Leaves: a mover. The path from gateway
// to target is the loopback of b's namespace, so the round trip between the sites is that of the link, as for QEMU's
// own TCP.

import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createRoot, issueCertificate, issueRevocations, newSerial, type Root, type SubjectRole } from '../../crypto/certificate.ts'
import { encodeKeys, generateSiteKeys } from '../../crypto/identity.ts'
import { localDiskPath, RUNTIME_FILES, VM_FILES } from '../../edge-node/vm/argv.ts'
import { guestImage } from '../../guest/image.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { eventually, sleep, within } from '../../ops/deadline.ts'
import { armor } from '../../ops/files.ts'
import { type JsonRequest, requestJson } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import type { GatewayStatus, MigrationRecord } from '../../wire/admin.ts'
import type { Bed, Started } from './bed.ts'
import type { MakeMover, MoverOptions } from './run-one.ts'
import { BENCH_VM } from './spec.ts'

/** A separate command, not a part of this one. */
const GODWIT = join(import.meta.dirname, '..', '..', 'bin', 'godwit.js')
const ASK = fileURLToPath(new URL('./ask.ts', import.meta.url))
const TOKEN = 'bench-0123456789abcdef'
const PORT = 7443
const ADMIN = { url: 'http://127.0.0.1:7445', token: TOKEN }
/** Each node boots a small guest first: slow on a busy host. */
const READY_MS = 150_000
const POLL_MS = 20
const ENDS = ['a', 'b'] as const

async function certify(root: Root, role: SubjectRole, id: string, dir: string) {
  const keys = generateSiteKeys()
  const { signPublic, boxPublic } = keys
  const now = nowSeconds()
  const validity = { notBefore: now - 60, notAfter: now + 86_400, serial: newSerial() }
  await mkdir(dir, { recursive: true })
  const identity = { keys: join(dir, 'keys'), certificate: join(dir, 'certificate'), root: join(dir, 'root.pub') }
  await writeFile(identity.keys, encodeKeys(keys), { mode: 0o600 })
  await writeFile(identity.certificate, armor('CERTIFICATE', issueCertificate(root, { role, id, signPublic, boxPublic, ...validity })))
  await writeFile(identity.root, armor('ROOT PUBLIC KEY', root.signPublic))
  return identity
}

async function startGateway(bed: Bed, root: Root): Promise<Started> {
  const dir = join(bed.dir, 'gateway')
  const identity = await certify(root, 'gateway', 'gateway', dir)
  await writeFile(join(dir, 'token'), TOKEN, { mode: 0o600 })
  const list = issueRevocations(root, { number: 1, issuedAt: nowSeconds() - 60, serials: [] })
  await writeFile(join(dir, 'revocations'), armor('REVOCATIONS', list))
  const config = {
    id: 'gateway',
    stateDir: join(dir, 'state'),
    listen: { host: '0.0.0.0', ports: { quic: PORT, tls: PORT, webtransport: 'off' } },
    admin: { host: '127.0.0.1', port: 7445, tokenFile: join(dir, 'token') },
    identity,
    revocations: join(dir, 'revocations'),
    log: { level: 'debug', format: 'text' },
  }
  await writeFile(join(dir, 'gateway.yaml'), toYaml(config))
  return bed.start([process.execPath, GODWIT, 'gateway', '--config', join(dir, 'gateway.yaml')], { at: 'b', log: 'gateway.log' })
}

async function startNode(bed: Bed, root: Root, at: 'a' | 'b'): Promise<Started> {
  const dir = join(bed.dir, at)
  const identity = await certify(root, 'site', at, dir)
  await mkdir(join(dir, 'images'))
  const image = guestImage()!
  await symlink(image.kernel, join(dir, 'images', 'vmlinuz'))
  await symlink(image.initrd, join(dir, 'images', 'initrd.img'))
  const config = {
    site: at,
    ...{ stateDir: join(dir, 'state'), runDir: dir, imagesDir: join(dir, 'images') },
    gateway: { id: 'gateway', host: at === 'a' ? bed.addresses.b : '127.0.0.1', ports: { quic: PORT, tls: PORT, webtransport: 'off' } },
    transport: 'auto',
    identity,
    api: { socket: join(dir, 'node.sock') },
    log: { level: 'debug', format: 'text' },
  }
  await writeFile(join(dir, 'node.yaml'), toYaml(config))
  return bed.start([process.execPath, GODWIT, 'node', '--config', join(dir, 'node.yaml')], { at, log: `node-${at}.log` })
}

type Ask = <T>(request: Partial<JsonRequest> & { path: string }) => Promise<T>

/** The admin API, from b's namespace. */
async function startAsking(bed: Bed): Promise<Ask> {
  const { child } = bed.start([process.execPath, ASK], { at: 'b', log: 'ask.log', ipc: true })
  const waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>()
  let last = 0
  await within(new Promise(resolve => child.once('message', resolve)), { ms: READY_MS, what: 'the asking process' })
  child.on('message', ({ id, value, error }: { id: number; value?: unknown; error?: string }) => {
    const waiter = waiting.get(id)
    waiting.delete(id)
    if (error !== undefined) waiter?.reject(new Error(error))
    else waiter?.resolve(value)
  })
  return <T>(request: Partial<JsonRequest> & { path: string }) =>
    new Promise<T>((resolve, reject) => {
      const id = ++last
      waiting.set(id, { resolve: value => resolve(value as T), reject })
      child.send({ id, request: { ...ADMIN, timeoutMs: 10_000, ...request } })
    })
}

const qemuPidOf = async (bed: Bed, at: 'a' | 'b'): Promise<number> =>
  Number.parseInt(await readFile(join(bed.dir, at, 'state', 'vms', BENCH_VM, VM_FILES.run, RUNTIME_FILES.pid), 'utf8'), 10)

/** What a VM with a local disk needs before it starts: images at both sites, and the content of its disk. */
type DiskPlan = {
  images: { name: string; from: string }[]
  fill?(path: string): Promise<void>
}

const IMPORT_MS = 60_000

async function importImages(bed: Bed, { images }: DiskPlan): Promise<void> {
  for (const at of ENDS)
    for (const image of images) {
      const node = { socketPath: join(bed.dir, at, 'node.sock') }
      await requestJson({ ...node, method: 'POST', path: '/v1/images', body: { ...image, format: 'raw' } })
      const isReady = async () => {
        const { state, error } = await requestJson<{ state: string; error?: { message: string } }>({
          ...node,
          path: `/v1/images/${image.name}`,
        })
        if (error) throw new Error(`image ${image.name}: ${error.message}`)
        return state === 'ready' || undefined
      }
      await eventually(isReady, { ms: IMPORT_MS, what: `image ${image.name}`, everyMs: 100 })
    }
}

export const makeGodwit: MakeMover = async options => await openGodwit(options, { images: [] })

export async function openGodwit({ bed, variant, specText }: MoverOptions, disk: DiskPlan) {
  const method = variant.kind === 'godwit' ? variant.method : 'live'
  const root = createRoot()
  const gateway = await startGateway(bed, root)
  const ask = await startAsking(bed)
  await eventually(() => ask({ path: '/healthz', timeoutMs: 1000 }).catch(() => undefined), {
    ms: READY_MS,
    what: 'the gateway',
    everyMs: 100,
  })
  const nodes = [await startNode(bed, root, 'a'), await startNode(bed, root, 'b')]
  const areOnline = async () => {
    const { sites } = await ask<GatewayStatus>({ path: '/v1/status' })
    return sites.filter(({ online }) => online).length === ENDS.length ? true : undefined
  }
  await eventually(areOnline, { ms: READY_MS, what: 'both sites', everyMs: 100 })
  const api = <T>(method: string, path: string, body: unknown) =>
    requestJson<T>({ socketPath: join(bed.dir, 'a', 'node.sock'), method, path, body, timeoutMs: 60_000 })
  const diskPath = (at: 'a' | 'b') => localDiskPath(join(bed.dir, at, 'state', 'vms', BENCH_VM), 0, { format: 'qcow2' })
  const logOf = (at: 'a' | 'b') => join(bed.dir, at, 'state', 'vms', BENCH_VM, VM_FILES.serialLog)
  return {
    logs: { a: logOf('a'), b: logOf('b') },
    boot: async () => {
      await importImages(bed, disk)
      await api('POST', '/v1/vms', { spec: specText })
      await disk.fill?.(diskPath('a'))
      await api('POST', `/v1/vms/${BENCH_VM}/start`, {})
    },
    qemuPid: (at: 'a' | 'b' = 'a') => qemuPidOf(bed, at),
    diskPath,
    pids: async () => [gateway.pid, ...nodes.map(({ pid }) => pid), await qemuPidOf(bed, 'a')],
    async move(signal: AbortSignal, to: 'a' | 'b' = 'b') {
      const body = { vm: BENCH_VM, to, method }
      const { migrationId } = await ask<{ migrationId: string }>({ method: 'POST', path: '/v1/migrations', body })
      for (;;) {
        const record = await ask<MigrationRecord>({ path: `/v1/migrations/${migrationId}` })
        if (record.outcome === 'completed') return noteOf(record)
        if (record.outcome !== null) throw new Error(`${record.error?.code}: ${record.error?.message}`)
        await sleep(POLL_MS, signal)
      }
    },
    // QEMUs outlive their agents; the bed ends all processes in its namespaces.
    [Symbol.asyncDispose]: async () => {},
  }
}

function noteOf({ report }: MigrationRecord): string {
  if (!report) return ''
  const { transport, rounds, downtimeMs, downtimeParts, totalMs, wireBytes, etaError, pagesDelta = 0, deltaBytes = 0, notes } = report
  const parts = Object.entries(downtimeParts).map(([name, ms]) => `${name.replace('Ms', '')} ${Math.round(Number(ms))}`)
  return [
    `${transport}, rounds ${rounds}, own figures: ${Math.round(totalMs)} ms in total, downtime ${Math.round(downtimeMs ?? 0)} ms (${parts.join(', ')})`,
    `${(wireBytes / 1e6).toFixed(1)} MB sealed`,
    ...(pagesDelta > 0 ? [`${pagesDelta} pages as deltas of ${(deltaBytes / 1e6).toFixed(1)} MB`] : []),
    ...(etaError ? [`ETA error ${Math.round(etaError.medianRatio * 100)} % (median)`] : []),
    ...notes,
  ].join('; ')
}
