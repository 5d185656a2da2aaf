"""The functions of TensorFlow that a layer of a file may call: mathematics on tensors.

Keras 2 saves a call of a function of TensorFlow as a layer that names the function, and fetches
whatever is named. Left out are functions that take other functions, files, or Python code.
"""

from __future__ import annotations

__all__ = ["METHODS", "OPERATIONS", "PROPERTIES"]

# By module, as the layers name them; the first are those of tensorflow itself.
_FUNCTIONS = {
    "": """
        approx_top_k argsort batch_to_space bitcast boolean_mask broadcast_dynamic_shape
        broadcast_static_shape broadcast_to cast clip_by_global_norm clip_by_norm
        clip_by_value concat conv conv2d_backprop_filter_v2 conv2d_backprop_input_v2
        convert_to_tensor dynamic_partition dynamic_stitch edit_distance einsum ensure_shape
        expand_dims extract_volume_patches eye fftnd fill fingerprint gather gather_nd
        histogram_fixed_width histogram_fixed_width_bins identity identity_n ifftnd irfftnd
        linspace meshgrid norm one_hot ones ones_like pad parallel_stack
        ragged_fill_empty_rows ragged_fill_empty_rows_grad random_index_shuffle range rank
        realdiv repeat reshape reverse reverse_sequence rfftnd roll scatter_nd searchsorted
        sequence_mask shape shape_n size slice sort space_to_batch space_to_batch_nd split
        squeeze stack stop_gradient strided_slice tensor_scatter_nd_add
        tensor_scatter_nd_max tensor_scatter_nd_min tensor_scatter_nd_sub
        tensor_scatter_nd_update tensordot tile transpose truncatediv truncatemod tuple
        unique unique_with_counts unravel_index unstack where zeros zeros_like
    """,
    "__operators__": """
        add eq getitem ne ragged_getitem
    """,
    "audio": """
        decode_wav encode_wav
    """,
    "bitwise": """
        bitwise_and bitwise_or bitwise_xor invert left_shift right_shift
    """,
    "compat.v1": """
        batch_gather batch_to_space batch_to_space_nd boolean_mask clip_by_average_norm
        convert_to_tensor div expand_dims floor_div gather gather_nd norm ones_like pad
        quantize_v2 setdiff1d shape size sparse_to_dense squeeze string_split substr
        to_bfloat16 to_complex128 to_complex64 to_double to_float to_int32 to_int64
        transpose tuple where zeros_like
    """,
    "compat.v1.image": """
        crop_and_resize draw_bounding_boxes extract_glimpse extract_image_patches
        resize_area resize_bicubic resize_bilinear resize_image_with_pad resize_images
        resize_nearest_neighbor sample_distorted_bounding_box
    """,
    "compat.v1.math": """
        argmax argmin confusion_matrix count_nonzero in_top_k reduce_all reduce_any
        reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_sum scalar_mul
    """,
    "compat.v1.nn": """
        avg_pool batch_norm_with_global_normalization conv1d conv2d conv2d_backprop_filter
        conv2d_backprop_input conv2d_transpose conv3d conv3d_backprop_filter
        conv3d_transpose convolution crelu ctc_beam_search_decoder ctc_loss ctc_loss_v2
        depth_to_space depthwise_conv2d depthwise_conv2d_native dilation2d dropout
        embedding_lookup embedding_lookup_sparse erosion2d fractional_avg_pool
        fractional_max_pool fused_batch_norm log_softmax max_pool max_pool_with_argmax
        moments nce_loss pool quantized_avg_pool quantized_conv2d quantized_max_pool
        quantized_relu_x relu_layer safe_embedding_lookup_sparse sampled_softmax_loss
        separable_conv2d sigmoid_cross_entropy_with_logits softmax
        softmax_cross_entropy_with_logits softmax_cross_entropy_with_logits_v2
        space_to_batch space_to_depth sparse_softmax_cross_entropy_with_logits
        sufficient_statistics weighted_cross_entropy_with_logits weighted_moments xw_plus_b
    """,
    "compat.v1.random": """
        multinomial poisson stateless_multinomial
    """,
    "compat.v1.strings": """
        length reduce_join split substr to_hash_bucket to_number
    """,
    "dtypes": """
        complex saturate_cast
    """,
    "image": """
        adjust_brightness adjust_contrast adjust_gamma adjust_hue adjust_jpeg_quality
        adjust_saturation central_crop combined_non_max_suppression convert_image_dtype
        crop_and_resize crop_to_bounding_box draw_bounding_boxes extract_glimpse
        extract_patches flip_left_right flip_up_down generate_bounding_box_proposals
        grayscale_to_rgb hsv_to_rgb image_gradients non_max_suppression
        non_max_suppression_overlaps non_max_suppression_padded
        non_max_suppression_with_scores pad_to_bounding_box per_image_standardization psnr
        random_brightness random_contrast random_crop random_flip_left_right
        random_flip_up_down random_hue random_jpeg_quality random_saturation resize
        resize_with_crop_or_pad resize_with_pad rgb_to_grayscale rgb_to_hsv rgb_to_yiq
        rgb_to_yuv rot90 sample_distorted_bounding_box sobel_edges ssim ssim_multiscale
        stateless_random_brightness stateless_random_contrast stateless_random_crop
        stateless_random_flip_left_right stateless_random_flip_up_down stateless_random_hue
        stateless_random_jpeg_quality stateless_random_saturation
        stateless_sample_distorted_bounding_box total_variation transpose yiq_to_rgb
        yuv_to_rgb
    """,
    "keras.activations": """
        elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax softplus softsign
        swish tanh
    """,
    "keras.backend": """
        abs all any argmax argmin batch_dot batch_flatten batch_normalization bias_add
        binary_crossentropy binary_focal_crossentropy cast categorical_crossentropy
        categorical_focal_crossentropy clip concatenate conv1d conv2d conv2d_transpose conv3d cos
        cumprod cumsum depthwise_conv2d dot dropout elu equal exp expand_dims flatten gather greater
        greater_equal hard_sigmoid in_top_k l2_normalize less less_equal log logsumexp max maximum
        mean min minimum normalize_batch_in_training not_equal one_hot ones_like permute_dimensions
        pool2d pool3d pow prod relu repeat repeat_elements reshape resize_images resize_volumes
        reverse round separable_conv2d shape sigmoid sign sin softmax softplus softsign
        sparse_categorical_crossentropy spatial_2d_padding spatial_3d_padding sqrt square squeeze
        stack std stop_gradient sum tanh temporal_padding tile transpose var zeros_like
    """,
    "keras.losses": """
        binary_crossentropy binary_focal_crossentropy categorical_crossentropy
        categorical_focal_crossentropy categorical_hinge cosine_similarity hinge huber kl_divergence
        log_cosh mean_absolute_error mean_absolute_percentage_error mean_squared_error
        mean_squared_logarithmic_error poisson sparse_categorical_crossentropy squared_hinge
    """,
    "keras.metrics": """
        binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
        categorical_crossentropy categorical_focal_crossentropy hinge kl_divergence log_cosh
        mean_absolute_error mean_absolute_percentage_error mean_squared_error
        mean_squared_logarithmic_error poisson sparse_categorical_accuracy
        sparse_categorical_crossentropy sparse_top_k_categorical_accuracy squared_hinge
        top_k_categorical_accuracy
    """,
    "linalg": """
        adjoint band_part cholesky cholesky_solve cross det diag diag_part eig eigh
        eigh_tridiagonal eigvals eigvalsh expm global_norm inv logdet lstsq lu
        lu_matrix_inverse lu_reconstruct lu_solve matmul matrix_rank matrix_transpose matvec
        normalize pinv qr set_diag solve sqrtm svd tensor_diag tensor_diag_part trace
        triangular_solve tridiagonal_matmul tridiagonal_solve
    """,
    "math": """
        abs accumulate_n acos acosh add add_n angle approx_max_k approx_min_k argmax argmin
        asin asinh atan atan2 atanh bessel_i0 bessel_i0e bessel_i1 bessel_i1e betainc
        bincount ceil confusion_matrix conj cos cosh count_nonzero cumprod cumsum
        cumulative_logsumexp digamma div_no_nan divide divide_no_nan equal erf erfc erfcinv
        erfinv exp expm1 floor floordiv floormod greater greater_equal igamma igammac imag
        in_top_k invert_permutation is_finite is_inf is_nan is_non_decreasing
        is_strictly_increasing l2_normalize lbeta less less_equal lgamma log log1p
        log_sigmoid logical_and logical_not logical_or logical_xor maximum minimum mod
        multiply multiply_no_nan ndtri negative nextafter not_equal polygamma polyval pow
        real reciprocal reciprocal_no_nan reduce_all reduce_any reduce_euclidean_norm
        reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_std reduce_sum
        reduce_variance rint round rsqrt scalar_mul segment_max segment_mean segment_min
        segment_prod segment_sum sigmoid sign sin sinh sobol_sample softplus sqrt square
        squared_difference subtract tan tanh top_k truediv unsorted_segment_max
        unsorted_segment_mean unsorted_segment_min unsorted_segment_prod
        unsorted_segment_sqrt_n unsorted_segment_sum xdivy xlog1py xlogy zero_fraction zeta
    """,
    "math.special": """
        bessel_j0 bessel_j1 bessel_k0 bessel_k0e bessel_k1 bessel_k1e bessel_y0 bessel_y1
        dawsn expint fresnel_cos fresnel_sin spence
    """,
    "nn": """
        atrous_conv2d atrous_conv2d_transpose avg_pool avg_pool1d avg_pool2d avg_pool3d
        batch_norm_with_global_normalization batch_normalization bias_add collapse_repeated
        compute_accidental_hits compute_average_loss conv1d conv1d_transpose conv2d
        conv2d_transpose conv3d conv3d_transpose conv_transpose convolution crelu
        ctc_beam_search_decoder ctc_greedy_decoder ctc_loss ctc_unique_labels depth_to_space
        depthwise_conv2d depthwise_conv2d_backprop_filter depthwise_conv2d_backprop_input
        dilation2d dropout elu embedding_lookup embedding_lookup_sparse erosion2d
        fractional_avg_pool fractional_max_pool gelu in_top_k isotonic_regression l2_loss
        l2_normalize leaky_relu local_response_normalization log_poisson_loss log_softmax
        lrn max_pool max_pool1d max_pool2d max_pool3d max_pool_with_argmax moments nce_loss
        normalize_moments pool relu relu6 safe_embedding_lookup_sparse sampled_softmax_loss
        selu separable_conv2d sigmoid sigmoid_cross_entropy_with_logits silu softmax
        softmax_cross_entropy_with_logits softplus softsign space_to_depth
        sparse_softmax_cross_entropy_with_logits sufficient_statistics swish tanh top_k
        weighted_cross_entropy_with_logits weighted_moments with_space_to_batch
        zero_fraction
    """,
    "nn.experimental": """
        stateless_dropout
    """,
    "quantization": """
        dequantize fake_quant_with_min_max_args fake_quant_with_min_max_args_gradient
        fake_quant_with_min_max_vars fake_quant_with_min_max_vars_gradient
        fake_quant_with_min_max_vars_per_channel
        fake_quant_with_min_max_vars_per_channel_gradient quantize quantize_and_dequantize
        quantize_and_dequantize_v2 quantized_concat
    """,
    "ragged": """
        boolean_mask constant cross cross_hashed range row_splits_to_segment_ids
        segment_ids_to_row_splits stack stack_dynamic_partitions
    """,
    "random": """
        categorical fold_in gamma learned_unigram_candidate_sampler
        log_uniform_candidate_sampler normal poisson shuffle split stateless_binomial
        stateless_categorical stateless_gamma stateless_normal
        stateless_parameterized_truncated_normal stateless_poisson
        stateless_truncated_normal stateless_uniform truncated_normal uniform
        uniform_candidate_sampler
    """,
    "random.experimental": """
        index_shuffle stateless_shuffle
    """,
    "sets": """
        difference intersection size union
    """,
    "signal": """
        dct fft fft2d fft3d fftshift frame hamming_window hann_window idct ifft ifft2d
        ifft3d ifftshift inverse_mdct inverse_stft kaiser_bessel_derived_window
        kaiser_window linear_to_mel_weight_matrix mdct mfccs_from_log_mel_spectrograms
        overlap_and_add stft vorbis_window
    """,
    "sparse": """
        bincount reshape
    """,
    "strings": """
        as_string bytes_split format join length lower ngrams reduce_join regex_full_match
        regex_replace split strip substr to_hash_bucket to_hash_bucket_fast
        to_hash_bucket_strong to_number unicode_decode unicode_decode_with_offsets
        unicode_encode unicode_script unicode_split unicode_split_with_offsets
        unicode_transcode unsorted_segment_join upper
    """,
}

OPERATIONS = frozenset(
    f"{module}.{name}".lstrip(".") for module, names in _FUNCTIONS.items() for name in names.split()
)


_RAGGED = {
    "from": """
        nested_row_lengths nested_row_splits nested_value_rowids row_lengths row_limits row_splits
        row_starts sparse tensor uniform_row_length value_rowids
    """,
    "of": """
        bounding_shape dense_shape flat_values indices merge_dims nested_row_lengths
        nested_row_splits nested_value_rowids nrows row_lengths row_limits row_splits row_starts
        to_sparse to_tensor value_rowids values with_flat_values with_row_splits_dtype with_values
    """,
}

# What makes a ragged tensor, and what a layer may read or call of a ragged or sparse one.
METHODS = frozenset(f"RaggedTensor.from_{name}" for name in _RAGGED["from"].split())
PROPERTIES = frozenset(_RAGGED["of"].split())
