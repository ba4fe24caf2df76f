// The fields of a zod schema, for tests that compare texts with it.

type Schema = { shape?: Record<string, unknown>; def?: Record<string, unknown>; unwrap?: () => unknown }

/** Fields of a schema as dotted paths; `*` stands for names that a person chooses. */
export function fieldsOf(schema: unknown, path: string[] = []): string[] {
  const { shape, def = {} } = (schema ?? {}) as Schema
  const here = path.length > 0 ? [path.join('.')] : []
  const inside = (part: unknown, name: string[] = []) => fieldsOf(part, [...path, ...name]).filter(field => field !== here[0])
  if (shape) return [...here, ...Object.entries(shape).flatMap(([name, part]) => inside(part, [name]))]
  if (def['valueType']) return [...here, ...inside(def['valueType'], ['*'])]
  for (const key of ['innerType', 'element', 'in']) if (def[key]) return [...here, ...inside(def[key])]
  return [...here, ...((def['options'] as unknown[] | undefined) ?? []).flatMap(option => inside(option))]
}
