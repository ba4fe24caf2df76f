// The OpenAPI documents and the tables of routes are what the code says; the router serves every route of the document,
// and no other.
import { readFileSync } from 'node:fs'
import { NODE_DOCUMENT, nodeRoutes } from '../../edge-node/api.ts'
import { ADMIN_DOCUMENT, adminRoutes } from '../../gateway/fronts/admin.ts'
import { operationsWith, routesOf } from '../../ops/api.ts'
import { startHttpServer } from '../../ops/http.ts'
import { type ApiDocument, codesOf, openApiDocument, openApiText, routeRows } from '../../ops/openapi.ts'
import { ERRORS } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { z } from '../../wire/schema.ts'
import { createApiChecker, readDocument } from '../support/openapi-checker.ts'
import { assert, suite, thrown } from '../support/suite.ts'

const test = suite('ops: OpenAPI', { ms: 15_000 })

const APIS: { name: string; heading: string; api: ApiDocument }[] = [
  { name: 'openapi-gateway.json', heading: '### Routes of the gateway', api: ADMIN_DOCUMENT },
  { name: 'openapi-node.json', heading: '### Routes of the node', api: NODE_DOCUMENT },
]
const pathOf = (path: string) => path.replace(/:(\w+)/g, '{$1}')

test('the committed documents are what the tables say (node bin/run.js scripts/openapi.ts writes them)', () => {
  for (const { name, api } of APIS) assert.equal(readDocument(name), JSON.parse(openApiText(api)), name)
})

test('the tables of routes in docs/reference/protocol.md are those of the code, row by row', () => {
  const document = readFileSync(new URL('../../docs/reference/protocol.md', import.meta.url), 'utf8')
  for (const { heading, api } of APIS) {
    const section = document.split(`${heading}\n`)[1]?.split(/^##/m)[0]
    const rows = section?.split('\n').filter(line => line.startsWith('| ')) ?? []
    assert.equal(rows.slice(2), routeRows(api), `${heading}: run node bin/run.js scripts/openapi.ts`)
  }
})

test('every reference leads somewhere, operations have names of their own, every path parameter is described', () => {
  for (const { name } of APIS) {
    const document = readDocument(name)
    const references = [...JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)].map(match => match[1]!)
    assert.ok(references.length > 20, name)
    for (const reference of references) {
      let at: unknown = document
      for (const part of reference.split('/')) at = (at as Record<string, unknown> | undefined)?.[part]
      assert.ok(at, `${name}: ${reference}`)
    }
    const operations = Object.entries(document.paths).flatMap(([path, all]) => Object.values(all).map(operation => ({ path, operation })))
    const ids = operations.map(({ operation }) => operation.operationId)
    assert.is(new Set(ids).size, ids.length, name)
    for (const { path, operation } of operations) {
      const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(([, parameter]) => parameter)
      const described = (operation.parameters ?? []).filter(parameter => parameter.in === 'path').map(parameter => parameter.name)
      assert.equal(described, inPath, `${name}: ${operation.operationId}`)
    }
  }
})

test('every route of the routers is in the documents, and the other way round, with its errors', () => {
  const node = nodeRoutes({} as never)
  const served = {
    'openapi-gateway.json': adminRoutes({} as never).map(({ method, path }) => `${method} ${pathOf(path)}`),
    'openapi-node.json': [...node.routes, ...node.upgrades.map(({ path }) => ({ method: 'GET', path }))].map(
      ({ method, path }) => `${method} ${pathOf(path)}`,
    ),
  }
  for (const { name, api } of APIS) {
    const { paths } = readDocument(name)
    const documented = Object.entries(paths).flatMap(([path, all]) => Object.keys(all).map(method => `${method.toUpperCase()} ${path}`))
    assert.equal(documented.sort(), served[name as keyof typeof served].sort(), name)
    for (const operation of api.operations) {
      const listed = paths[pathOf(operation.path)]?.[operation.method.toLowerCase()]?.responses
      const codes = Object.values(listed ?? {}).flatMap(({ content }) =>
        [...JSON.stringify(content ?? {}).matchAll(/"([A-Z_]{5,})"/g)].map(([, code]) => code!),
      )
      assert.equal(codes.sort(), codesOf(operation, api.hasToken).sort(), operation.id)
      for (const code of codes) assert.ok(code in ERRORS, code)
    }
  }
})

const Item = z.object({ name: z.string(), any: z.json().optional() })
const { json } = operationsWith<{ prefix: string }>()
const operations = [
  json('putItem', 'PUT /items/:name', {
    summary: 'keep an item',
    params: { name: z.string().max(4) },
    status: 201,
    errors: ['VM_EXISTS'],
    query: z.strictObject({ limit: z.coerce.number().int().min(1).optional() }),
    body: z.strictObject({ tag: z.string() }),
    answer: Item,
    handle: ({ prefix }, { params, query, body }) => ({ name: `${prefix}${params.name}${body.tag}${query.limit ?? ''}` }),
  }),
]
const api: ApiDocument = {
  ...{ title: 'Items', description: 'a test', who: 'anybody', hasToken: false },
  server: { url: 'http://localhost', description: 'here' },
  operations,
  schemas: { Item },
}

test('a handler sees what its schemas have passed; anything else is a 400 that names the parameter or field', async () => {
  const { routes } = routesOf(operations, { prefix: '>' })
  const server = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, log: silentLog })
  const url = 'port' in server.address ? `http://127.0.0.1:${server.address.port}` : ''
  const put = async (path: string, body: unknown = { tag: 'x' }) => {
    const answer = await fetch(`${url}${path}`, { method: 'PUT', body: JSON.stringify(body) })
    return { status: answer.status, body: (await answer.json()) as { code: string; message: string } }
  }
  try {
    assert.equal(await put('/items/a?limit=2'), { status: 201, body: { name: '>ax2' } })
    const wrong: [string, unknown, RegExp][] = [
      ['/items/abcde', { tag: 'x' }, /^name: /],
      ['/items/a?limit=0', { tag: 'x' }, /^query: limit: /],
      ['/items/a?limit=1&limit=2', { tag: 'x' }, /^query: limit: given more than once/],
      ['/items/a?pages=1', { tag: 'x' }, /^query: .*pages/],
      ['/items/a', { tag: 1 }, /^request body: tag: /],
      ['/items/a', { tag: 'x', more: 1 }, /^request body: .*more/],
    ]
    for (const [path, body, message] of wrong) {
      const refused = await put(path, body)
      assert.equal([refused.status, refused.body.code], [400, 'CONFIG_INVALID'], path)
      assert.match(refused.body.message, message)
    }
  } finally {
    await server.close()
  }
})

test('the checker that other tests use finds what does not fit', async () => {
  const checker = createApiChecker(openApiDocument(api) as never)
  checker.answer('PUT', '/items/a?limit=2', { name: 'a', any: { deep: [1, null] }, grown: true })
  checker.error('PUT', '/items/a', 'VM_EXISTS')
  assert.match(String(await thrown(() => checker.answer('PUT', '/items/a', { name: 1 }))), /putItem/)
  assert.match(String(await thrown(() => checker.answer('GET', '/items/a', {}))), /not in the document/)
  assert.match(String(await thrown(() => checker.error('PUT', '/items/a', 'SITE_UNKNOWN'))), /does not list/)
  assert.equal([...checker.seen()], ['putItem'])
})

test.run()
