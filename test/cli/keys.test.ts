// keygen, root and show with real files: what is written where, with which mode, and what is refused.

import { chmod, readFile, stat, writeFile } from 'node:fs/promises'
import { loadIdentity } from '../../identity/load.ts'
import { openTrust } from '../../identity/trust.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { openStore } from '../../ops/store.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { home } from './recording-io.ts'

const test = suite('cli: keys and certificates')

const modeOf = async (path: string) => (await stat(path)).mode & 0o777
test('keygen, root create, root sign give an identity that a node accepts', async () => {
  await using at = await home()
  const keys = await at.godwit('keygen', '--id', 'berlin-1', '--json')
  assert.is(keys.code, 0)
  const { fingerprint, request } = keys.json()
  assert.match(fingerprint, /^[0-9a-hjkmnp-tv-z]{5}(-[0-9a-hjkmnp-tv-z]{5}){4}$/)
  assert.is((await at.godwit('root', 'create')).code, 0)
  const signed = await at.godwit('root', 'sign', request, '--fingerprint', fingerprint, '--valid-for', '7d', '--json')
  assert.is(signed.code, 0, signed.err)
  assert.is(signed.json().id, 'berlin-1')
  assert.is(signed.json().certificate, at.path('config', 'site.cert'))

  assert.is(await modeOf(at.path('config', 'site.keys')), 0o600)
  assert.is(await modeOf(at.path('config', 'root.key')), 0o600)
  assert.is(await modeOf(at.path('config', 'site.cert')), 0o644)
  assert.is(await modeOf(at.path('config')), 0o700)

  const paths = { keys: at.path('config', 'site.keys'), certificate: at.path('config', 'site.cert'), root: at.path('config', 'root.pub') }
  const who = { role: 'site', id: 'berlin-1', now: nowSeconds() } as const
  const identity = await loadIdentity(paths, who)
  assert.is(identity.claims.id, 'berlin-1')
  assert.is(await codeOf(() => loadIdentity(paths, { ...who, now: who.now + 8 * 86_400 })), 'CERT_EXPIRED')
  assert.is(await codeOf(() => loadIdentity(paths, { ...who, id: 'hamburg-1' })), 'AUTH_FAILED')

  const revoked = await at.godwit('root', 'revoke', at.path('config', 'site.cert'), '--json')
  assert.equal([revoked.json().number, revoked.json().serials], [2, 1], 'root create made number 1')
  assert.equal((await at.godwit('root', 'revoke', '--json')).json().number, 3)
  assert.equal((await at.godwit('root', 'revoke', '--after', '40', '--json')).json().number, 41)
  const store = await openStore(at.path('store'))
  const trust = await openTrust({ rootPublic: identity.rootPublic, file: at.path('config', 'revocations'), store, log: silentLog })
  trust.requireFresh()
  assert.is(await codeOf(() => trust.verify(identity.certificate, { role: 'site', id: 'berlin-1' })), 'CERT_REVOKED')
  await trust.close()
  await store.close()

  await chmod(paths.keys, 0o640)
  assert.is(await codeOf(() => loadIdentity(paths, who)), 'CONFIG_INVALID')
})

test('keys are never overwritten without --force', async () => {
  await using at = await home()
  await at.godwit('keygen', '--id', 'a')
  const before = await readFile(at.path('config', 'site.keys'), 'utf8')
  const again = await at.godwit('keygen', '--id', 'a')
  assert.is(again.code, 2)
  assert.match(again.err, /error CONFIG_INVALID: .*site\.keys already exists/)
  assert.is(await readFile(at.path('config', 'site.keys'), 'utf8'), before)
  assert.is((await at.godwit('keygen', '--id', 'a', '--force')).code, 0)
  assert.is.not(await readFile(at.path('config', 'site.keys'), 'utf8'), before)
  await at.godwit('root', 'create')
  assert.is((await at.godwit('root', 'create')).code, 2)
})

test('a request is refused when its keys are not the ones that were read out, or it was altered', async () => {
  await using at = await home()
  await at.godwit('root', 'create')
  await at.godwit('keygen', '--id', 'a')
  const request = at.path('config', 'site.request')
  const none = await at.godwit('root', 'sign', request)
  assert.is(none.code, 2, 'a fingerprint is needed')
  assert.match(none.err, 'error USAGE: --fingerprint is missing')
  const wrong = await at.godwit('root', 'sign', request, '--fingerprint', 'aaaaa-bbbbb-ccccc-ddddd-eeeee')
  assert.is(wrong.code, 6)
  assert.match(wrong.err, /error AUTH_FAILED: the request for a has fingerprint/)
  const text = await readFile(request, 'utf8')
  const body = text.split('\n')[1]!
  const altered = `${body.slice(0, 20)}${body[20] === 'A' ? 'B' : 'A'}${body.slice(21)}`
  await writeFile(request, text.replace(body, altered))
  assert.is((await at.godwit('root', 'sign', request, '--no-fingerprint')).code, 6)
  await writeFile(request, 'hello')
  const garbage = await at.godwit('root', 'sign', request, '--no-fingerprint')
  assert.is(garbage.code, 2)
  assert.match(garbage.err, /expected a GODWIT CERTIFICATE REQUEST, found something else/)
  const swapped = await at.godwit('root', 'sign', at.path('config', 'root.pub'), '--no-fingerprint')
  assert.match(swapped.err, /found a GODWIT ROOT PUBLIC KEY/)
})

test('root show tells what each file is and never a secret', async () => {
  await using at = await home()
  await at.godwit('root', 'create')
  await at.godwit('keygen', '--id', 'a', '--role', 'gateway')
  await at.godwit('root', 'sign', at.path('config', 'gateway.request'), '--no-fingerprint')
  const kinds: [string, string][] = [
    ['root.pub', 'root public key'],
    ['root.key', 'root key (secret)'],
    ['gateway.keys', 'keys (secret)'],
    ['gateway.request', 'certificate request'],
    ['gateway.cert', 'certificate'],
  ]
  for (const [file, kind] of kinds) {
    const shown = await at.godwit('root', 'show', at.path('config', file), '--json')
    assert.is(shown.json().kind, kind)
    assert.ok(shown.json().fingerprint)
    if (!kind.includes('secret')) continue
    const secrets = Object.values(JSON.parse(await readFile(at.path('config', file), 'utf8'))).filter(value => String(value).length > 30)
    assert.ok(secrets.length > 0)
    for (const secret of secrets) assert.not.ok(shown.out.includes(String(secret)))
  }
  const good = await at.godwit('root', 'show', at.path('config', 'gateway.cert'), '--root-public', at.path('config', 'root.pub'))
  assert.match(good.out, /check: +good/)
  await at.godwit('root', 'create', '--out', at.path('other'))
  const bad = await at.godwit('root', 'show', at.path('config', 'gateway.cert'), '--root-public', at.path('other', 'root.pub'))
  assert.is(bad.code, 6)
  assert.match(bad.out, /check: +NOT accepted/)
  assert.is((await at.godwit('root', 'show', at.path('none'))).code, 2)
})

test('a name that no certificate can carry is refused before anything is written', async () => {
  await using at = await home()
  const refused = await at.godwit('keygen', '--id', 'Berlin 1')
  assert.is(refused.code, 2)
  assert.is(await codeOf(() => stat(at.path('config'))), 'ENOENT')
})

test('to revoke one certificate is to revoke its key: renewed ones before and after it go with it, others stay', async () => {
  await using at = await home()
  await at.godwit('root', 'create')
  const serials: string[] = []
  for (const [id, out] of [
    ['a', 'a1'],
    ['a', 'a2'],
    ['b', 'b1'],
  ] as const) {
    if (out !== 'a2') await at.godwit('keygen', '--id', id, '--out', at.path(id))
    const signed = await at.godwit(
      'root',
      'sign',
      at.path(id, 'site.request'),
      '--no-fingerprint',
      '--out',
      at.path(`${out}.cert`),
      '--json',
    )
    serials.push(signed.json().serial)
  }
  assert.is((await at.godwit('root', 'revoke', at.path('a2.cert'), '--json')).json().serials, 2)
  const shown = await at.godwit('root', 'show', at.path('config', 'revocations'), '--root-public', at.path('config', 'root.pub'), '--json')
  assert.equal(shown.json().serials.split(' ').sort(), serials.slice(0, 2).sort())
})

test.run()
