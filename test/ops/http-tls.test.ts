// HTTPS with a certificate from files: who vouches for it may ask, a renewed one is served without a restart, half a
// renewal changes nothing.
import { execFile, spawnSync } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { connect } from 'node:tls'
import { promisify } from 'node:util'
import { eventually } from '../../ops/deadline.ts'
import { startHttpServer } from '../../ops/http.ts'
import { requestJson } from '../../ops/http-client.ts'
import { openTlsFiles } from '../../ops/tls-files.ts'
import { createServerCertificate } from '../../transport/self-signed.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('ops/http over TLS', { ms: 30_000 })
const routes = [{ method: 'GET' as const, path: '/v1/x', handle: () => ({ body: { ok: true } }) }]

async function files(folder: string) {
  const paths = { certificate: `${folder}/server.pem`, key: `${folder}/server.key` }
  const renew = async (which: 'both' | 'certificate' = 'both') => {
    const made = createServerCertificate()
    await writeFile(paths.certificate, made.certificatePem)
    if (which === 'both') await writeFile(paths.key, made.keyPem, { mode: 0o600 })
    return made.certificatePem
  }
  return { paths, renew }
}

/** The certificate that is served, DER in hex. */
const served = (port: number) =>
  new Promise<string>((resolve, reject) => {
    const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false }, () => {
      resolve(socket.getPeerX509Certificate()!.raw.toString('hex'))
      socket.destroy()
    })
    socket.once('error', reject)
  })

test('a client that has the certificate is answered, others are told what is missing; plain HTTP is refused; beyond loopback it listens', async () => {
  await using folder = await tempFolder()
  const { paths, renew } = await files(folder.path)
  const ca = await renew()
  const tls = await openTlsFiles(paths, { log: silentLog })
  const server = await startHttpServer({ listen: { host: '0.0.0.0', port: 0 }, routes, token: 't', tls, log: silentLog })
  const port = 'port' in server.address ? server.address.port : 0
  try {
    const ask = (url: string, more: object = {}) => requestJson({ url, token: 't', path: '/v1/x', timeoutMs: 5_000, ...more })
    assert.equal(await ask(`https://localhost:${port}`, { ca }), { ok: true })
    const error = (await thrown(() => ask(`https://localhost:${port}`))) as { code: string; hint?: string }
    assert.equal([error.code, /--gateway-ca/.test(error.hint ?? '')], ['GATEWAY_UNREACHABLE', true])
    assert.is(await codeOf(() => ask(`https://127.0.0.1:${port}`, { ca })), 'GATEWAY_UNREACHABLE', 'a name that the certificate has not')
    assert.is(await codeOf(() => ask(`http://localhost:${port}`)), 'GATEWAY_UNREACHABLE')
    assert.is(await codeOf(() => ask(`https://localhost:${port}`, { ca, token: 'other' })), 'TOKEN_INVALID')
  } finally {
    tls.close()
    await server.close()
  }
})

/** Why no network namespace can be made here, or undefined. */
function missing(): string | undefined {
  const { status } = spawnSync('unshare', ['--net', 'ip', 'link', 'set', 'lo', 'up'], { timeout: 10_000 })
  return status === 0 ? undefined : 'unshare, ip and root are needed: node scripts/setup.js --test'
}

test(
  'who has many IPv6 addresses of one network has the connections of one address',
  async () => {
    await using folder = await tempFolder()
    const { paths, renew } = await files(folder.path)
    await renew()
    const child = new URL('./http-place-child.ts', import.meta.url).pathname
    const addresses = [1, 2, 3, 4, 5, 6, 7, 8, 9].map(n => `ip -6 addr add fd00::${n}/64 dev lo nodad`)
    const run = `exec "${process.execPath}" "${child}" "${paths.certificate}" "${paths.key}"`
    const script = ['ip link set lo up', ...addresses, run].join(' && ')
    const { stdout } = await promisify(execFile)('unshare', ['--net', 'sh', '-c', script], { timeout: 25_000 })
    assert.is(stdout.trim(), '64')
  },
  { skip: missing() },
)

test('a renewed certificate is served soon; a pair that does not fit changes nothing and is one warning', async () => {
  await using folder = await tempFolder()
  const { paths, renew } = await files(folder.path)
  await renew()
  const warnings: string[] = []
  const log: Log = { ...silentLog, warn: event => void warnings.push(event), child: () => log }
  const tls = await openTlsFiles(paths, { log, everyMs: 20 })
  const server = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, token: 't', tls, log })
  const port = 'port' in server.address ? server.address.port : 0
  try {
    const first = await served(port)
    await renew('certificate')
    await eventually(() => warnings[0], { ms: 5_000, what: 'a warning' })
    await new Promise(resolve => setTimeout(resolve, 200))
    assert.is(warnings.length, 1)
    assert.is(await served(port), first)
    // Half written, or on a disk that is full: an empty certificate is none, and is not served.
    await writeFile(paths.certificate, '')
    await new Promise(resolve => setTimeout(resolve, 200))
    assert.is(await served(port), first)
    await renew()
    await eventually(async () => ((await served(port)) === first ? undefined : true), { ms: 5_000, what: 'the new certificate' })
  } finally {
    tls.close()
    await server.close()
  }
})

test('files that are missing, or do not fit, are named at the start', async () => {
  await using folder = await tempFolder()
  const { paths, renew } = await files(folder.path)
  assert.is(await codeOf(() => openTlsFiles(paths, { log: silentLog })), 'CONFIG_UNREADABLE')
  await renew()
  for (const file of [paths.certificate, paths.key]) {
    await writeFile(file, '')
    assert.is(await codeOf(() => openTlsFiles(paths, { log: silentLog })), 'CONFIG_INVALID', `${file} is empty`)
    await renew()
  }
  await renew('certificate')
  assert.match(String(await thrown(() => openTlsFiles(paths, { log: silentLog }))), /server\.pem and .*server\.key: /)
})

test.run()
