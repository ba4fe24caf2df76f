import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { armor, dearmor, readArmored, readSecret, readText, writeFileSafely } from '../../ops/files.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('ops: key files')

async function folder() {
  const path = await mkdtemp(join(tmpdir(), 'godwit-files-'))
  return { path, in: (name: string) => join(path, name), [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
}

test('what is armoured comes back, of its kind, whatever stands around it', () => {
  for (const length of [1, 47, 48, 49, 500]) {
    const bytes = Uint8Array.from({ length }, (_, at) => at * 7)
    const text = armor('CERTIFICATE', bytes)
    assert.ok(text.split('\n').every(line => line.length <= 64))
    assert.equal(dearmor(`hello\r\n${text.replaceAll('\n', '\r\n')}bye`), { kind: 'CERTIFICATE', bytes })
    for (let cut = 0; cut < text.length - 1; cut++) assert.is(dearmor(text.slice(0, cut)), undefined, `cut at ${cut}`)
  }
  assert.is(dearmor(armor('CERTIFICATE', new Uint8Array(9)).replace('END GODWIT CERTIFICATE', 'END GODWIT REVOCATIONS')), undefined)
  assert.is(dearmor(armor('CERTIFICATE', new Uint8Array(9)).replaceAll('CERTIFICATE', 'PONY')), undefined)
})

test('a file of another kind, or none, is refused by name', async () => {
  await using at = await folder()
  await writeFile(at.in('x'), armor('REVOCATIONS', new Uint8Array(8)))
  assert.is(await codeOf(() => readArmored(at.in('x'), 'CERTIFICATE')), 'CONFIG_INVALID')
  assert.equal(await readArmored(at.in('x'), 'REVOCATIONS'), new Uint8Array(8))
  assert.is(await codeOf(() => readText(at.in('none'))), 'CONFIG_UNREADABLE')
  assert.is(await codeOf(() => readText(at.path)), 'CONFIG_UNREADABLE')
  await writeFile(at.in('big'), Buffer.alloc(1024 * 1024 + 1))
  assert.is(await codeOf(() => readText(at.in('big'))), 'CONFIG_INVALID')
})

test('a secret is 0600, and refused when others may read it', async () => {
  await using at = await folder()
  const path = at.in('deep/er/secret')
  await writeFileSafely(path, 'x')
  assert.is((await stat(path)).mode & 0o777, 0o600)
  assert.is((await stat(at.in('deep'))).mode & 0o777, 0o700)
  assert.is(await readSecret(path), 'x')
  for (const mode of [0o640, 0o604, 0o660]) {
    await chmod(path, mode)
    assert.is(await codeOf(() => readSecret(path)), 'CONFIG_INVALID', mode.toString(8))
  }
})

test('writing is whole or not at all, and never over a file that is not to be lost', async () => {
  await using at = await folder()
  await writeFileSafely(at.in('a'), 'first')
  assert.is(await codeOf(() => writeFileSafely(at.in('a'), 'second')), 'CONFIG_INVALID')
  assert.is(await readFile(at.in('a'), 'utf8'), 'first')
  await writeFileSafely(at.in('a'), 'third', { overwrite: true, mode: 0o644 })
  assert.is(await readFile(at.in('a'), 'utf8'), 'third')
  assert.is((await stat(at.in('a'))).mode & 0o777, 0o644)
  assert.is(await codeOf(() => writeFileSafely(join(at.in('a'), 'below-a-file'), 'x')), 'CONFIG_UNREADABLE')
  assert.equal(await readdir(at.path), ['a'])
})

test.run()
