;; The inner loop of model-input.ts: |crop - reference| of bytes, as floats times a factor, sixteen at a time.
(module
  (memory (export "memory") 1)
  (func (export "distance")
    (param $crop i32) (param $reference i32)
    (param $end i32)      ;; of the crop; up to fifteen bytes behind it are read, and as many floats written
    (param $out i32)
    (param $factor f32)
    (local $one v128) (local $other v128) (local $bytes v128) (local $half v128) (local $factors v128)
    (local.set $factors (f32x4.splat (local.get $factor)))
    (loop $next
      (local.set $one (v128.load (local.get $crop)))
      (local.set $other (v128.load (local.get $reference)))
      ;; of the two differences, which end at zero, one is zero
      (local.set $bytes (v128.or
        (i8x16.sub_sat_u (local.get $one) (local.get $other))
        (i8x16.sub_sat_u (local.get $other) (local.get $one))))
      (local.set $half (i16x8.extend_low_i8x16_u (local.get $bytes)))
      (v128.store (local.get $out) (f32x4.mul (local.get $factors) (f32x4.convert_i32x4_u (i32x4.extend_low_i16x8_u (local.get $half)))))
      (v128.store offset=16 (local.get $out) (f32x4.mul (local.get $factors) (f32x4.convert_i32x4_u (i32x4.extend_high_i16x8_u (local.get $half)))))
      (local.set $half (i16x8.extend_high_i8x16_u (local.get $bytes)))
      (v128.store offset=32 (local.get $out) (f32x4.mul (local.get $factors) (f32x4.convert_i32x4_u (i32x4.extend_low_i16x8_u (local.get $half)))))
      (v128.store offset=48 (local.get $out) (f32x4.mul (local.get $factors) (f32x4.convert_i32x4_u (i32x4.extend_high_i16x8_u (local.get $half)))))
      (local.set $crop (i32.add (local.get $crop) (i32.const 16)))
      (local.set $reference (i32.add (local.get $reference) (i32.const 16)))
      (local.set $out (i32.add (local.get $out) (i32.const 64)))
      (br_if $next (i32.lt_u (local.get $crop) (local.get $end))))))
